//! The steps that are built in, whose effects Waybill knows.

use proto::orders::v1::{OrderStatus, Route, RouteStep};

/// A step that is built in, with its fixed properties.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BuiltIn {
    pub(crate) name: &'static str,
    pub(crate) compensates: bool,
    pub(crate) leads_to: OrderStatus,
}

/// In the order of the built-in route.
const STEPS: [BuiltIn; 3] = [
    BuiltIn { name: "inventory", compensates: true, leads_to: OrderStatus::Reserved },
    BuiltIn { name: "payment", compensates: true, leads_to: OrderStatus::Paid },
    BuiltIn { name: "fulfilment", compensates: false, leads_to: OrderStatus::Fulfilled },
];

/// The built-in step of a name, if there is one.
pub(crate) fn step(name: &str) -> Option<&'static BuiltIn> {
    STEPS.iter().find(|step| step.name == name)
}

/// The only route of a program without a route file.
pub(crate) fn route() -> Route {
    let step = |step: &BuiltIn| RouteStep {
        name: step.name.to_owned(),
        compensates: step.compensates,
        leads_to: step.leads_to.into(),
    };
    Route { name: "standard".to_owned(), steps: STEPS.iter().map(step).collect() }
}
