//! The rules of a single step.

use proto::orders::v1::{OrderStatus, RouteStep};
use proto::orders::{RESERVED_STEP_NAMES, RESERVED_STEP_SUFFIX};

use crate::built_in::{self, BuiltIn};
use crate::check::keys::{is_name, keys, unknown_key};
use crate::faults::{Faults, quoted, within};
use crate::yaml::Node;

/// The statuses that a step can lead to.
const STATUSES: [(&str, OrderStatus); 3] =
    [("RESERVED", OrderStatus::Reserved), ("PAID", OrderStatus::Paid), ("FULFILLED", OrderStatus::Fulfilled)];

/// A step as far as it is understood.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) place: String,
    /// `None` if it has no valid name.
    pub(super) name: Option<&'a str>,
    /// `None` if a fault hides it; UNSPECIFIED if it leaves the status as it is.
    pub(super) leads_to: Option<OrderStatus>,
    compensates: bool,
    has_status: bool,
}

impl<'a> Draft<'a> {
    /// Reads a step: a name, or a mapping.
    pub(super) fn read(step: &'a Node, place: String, faults: &mut Faults) -> Self {
        let mut draft = Self { place, name: None, leads_to: None, compensates: false, has_status: false };
        match step {
            Node::Text(name) => {
                draft.name = step_name(name, &draft.place, faults);
                draft.set_properties(None, None, faults);
            }
            Node::Mapping(entries) => draft.read_mapping(entries, faults),
            Node::Nothing | Node::Boolean(_) | Node::Number | Node::List(_) => {
                let problem = "a step must be a name or a mapping with the key `name`; it is";
                faults.add(&draft.place, format!("{problem} {}", step.kind()));
            }
        }
        draft
    }

    /// Where its status is: at the key, or of a built-in step at the step.
    pub(super) fn place_of_status(&self) -> String {
        if self.has_status { within(&self.place, "status") } else { self.place.clone() }
    }

    /// The step of a file without faults.
    pub(super) fn into_step(self) -> Option<RouteStep> {
        let (name, leads_to) = (self.name?.to_owned(), self.leads_to?.into());
        Some(RouteStep { name, compensates: self.compensates, leads_to })
    }

    fn read_mapping(&mut self, entries: &'a [(Node, Node)], faults: &mut Faults) {
        let (mut name, mut compensates, mut status) = (None, None, None);
        for (key, value) in keys(entries, &self.place, faults) {
            match key {
                "name" => name = Some(value),
                "compensates" => compensates = Some(value),
                "status" => status = Some(value),
                _ => unknown_key(key, &self.place, &["name", "compensates", "status"], faults),
            }
        }
        let place = within(&self.place, "name");
        match name {
            Some(Node::Text(name)) => self.name = step_name(name, &place, faults),
            Some(other) => faults.add(place, format!("must be text; it is {}", other.kind())),
            None => faults.add(place, "missing; name the step"),
        }
        self.has_status = status.is_some();
        self.set_properties(compensates, status, faults);
    }

    /// Takes what the file says about the step, or the properties that a step of this name has without.
    fn set_properties(&mut self, compensates: Option<&Node>, status: Option<&Node>, faults: &mut Faults) {
        let built_in = self.name.and_then(built_in::step);
        self.compensates = built_in.is_some_and(|step| step.compensates);
        match compensates {
            Some(Node::Boolean(compensates)) => {
                if let Some(step) = built_in.filter(|step| step.compensates != *compensates) {
                    faults.add(within(&self.place, "compensates"), fixed_compensation(step));
                }
                self.compensates = *compensates;
            }
            Some(other) => {
                let problem = format!("must be true or false; it is {}", other.kind());
                faults.add(within(&self.place, "compensates"), problem);
            }
            None => {}
        }
        self.leads_to = match status {
            Some(status) => {
                let status = status_of(status, built_in);
                status.map_err(|problem| faults.add(within(&self.place, "status"), problem)).ok()
            }
            None => self.name.map(|_| built_in.map_or(OrderStatus::Unspecified, |step| step.leads_to)),
        };
    }
}

fn step_name<'a>(name: &'a str, place: &str, faults: &mut Faults) -> Option<&'a str> {
    if RESERVED_STEP_NAMES.contains(&name) || name.ends_with(RESERVED_STEP_SUFFIX) {
        faults.add(place, format!("`{name}` is reserved; choose another name"));
        return None;
    }
    is_name(name, place, faults).then_some(name)
}

fn fixed_compensation(step: &BuiltIn) -> String {
    let name = step.name;
    if step.compensates {
        format!("{name} always compensates, or its effect would remain; leave `compensates` out")
    } else {
        format!("{name} cannot compensate; leave `compensates` out")
    }
}

/// The status that the file gives to a step. A built-in step has its own, or fulfils the order.
fn status_of(status: &Node, built_in: Option<&BuiltIn>) -> Result<OrderStatus, String> {
    let Node::Text(text) = status else {
        return Err(format!("must be RESERVED, PAID or FULFILLED; it is {}", status.kind()));
    };
    let Some((_, status)) = STATUSES.iter().find(|(name, _)| name == text) else {
        return Err(format!("must be RESERVED, PAID or FULFILLED; it is {}", quoted(text)));
    };
    match built_in.filter(|step| step.leads_to != *status && *status != OrderStatus::Fulfilled) {
        Some(step) => Err(format!(
            "{} cannot lead to {text}; leave `status` out, or write FULFILLED if it is the last step",
            step.name
        )),
        None => Ok(*status),
    }
}
