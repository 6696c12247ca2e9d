//! The routes of a program.

use proto::orders::v1::Route;

use crate::built_in;

/// The routes that orders can take: at least one, each with valid steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Routes {
    routes: Vec<Route>,
    default: String,
}

impl Routes {
    /// Routes that are checked already. `default` is the name of one.
    pub(crate) fn checked(routes: Vec<Route>, default: String) -> Self {
        Self { routes, default }
    }

    /// The route of a name, to stamp into a new order. An empty name is that of the default route.
    pub fn route(&self, name: &str) -> Option<Route> {
        let name = if name.is_empty() { self.default_name() } else { name };
        self.routes.iter().find(|route| route.name == name).cloned()
    }

    /// The name of the route for orders that name none.
    pub fn default_name(&self) -> &str {
        &self.default
    }

    /// The names of the routes, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.routes.iter().map(|route| route.name.as_str())
    }

    /// The name of each step of any route, once, in the order of the file.
    pub fn steps(&self) -> Vec<&str> {
        let mut steps = Vec::new();
        for step in self.routes.iter().flat_map(|route| &route.steps) {
            if !steps.contains(&step.name.as_str()) {
                steps.push(step.name.as_str());
            }
        }
        steps
    }
}

/// One route: inventory, payment, fulfilment.
impl Default for Routes {
    fn default() -> Self {
        let route = built_in::route();
        let default = route.name.clone();
        Self { routes: vec![route], default }
    }
}
