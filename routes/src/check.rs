//! The rules of a route file as a whole. Every fault is collected, so that one look at them is enough to fix the file.

use std::collections::HashSet;

use proto::orders::v1::Route;

use crate::check::keys::{is_name, keys, unknown_key};
use crate::faults::{Faults, quoted, within};
use crate::routes::Routes;
use crate::yaml::Node;

mod keys;
mod route;
mod step;

/// Most routes of a file.
const ROUTES_MAX: usize = 32;

/// The routes that a document defines.
pub(crate) fn routes(document: &Node) -> Result<Routes, Faults> {
    let entries = match document {
        Node::Mapping(entries) => entries,
        Node::Nothing => return Err(Faults::one("the file is empty; define `routes`")),
        Node::Boolean(_) | Node::Number | Node::Text(_) | Node::List(_) => {
            let kind = document.kind();
            return Err(Faults::one(format!(
                "the file must be a mapping with the key `routes`; it is {kind}"
            )));
        }
    };
    let mut faults = Faults::default();
    let (mut default, mut defined) = (None, None);
    for (key, value) in keys(entries, "", &mut faults) {
        match key {
            "default" => default = Some(value),
            "routes" => defined = Some(value),
            _ => unknown_key(key, "", &["default", "routes"], &mut faults),
        }
    }
    let routes = match defined {
        Some(Node::Mapping(entries)) if !entries.is_empty() => all_routes(entries, &mut faults),
        Some(Node::Mapping(_) | Node::Nothing) => {
            faults.add("routes", "has no routes; define one");
            return Err(faults);
        }
        Some(other) => {
            faults.add(
                "routes",
                format!("must be a mapping of names to lists of steps; it is {}", other.kind()),
            );
            return Err(faults);
        }
        None => {
            faults.add("routes", "missing; define at least one route");
            return Err(faults);
        }
    };
    match default_name(default, &routes, &mut faults) {
        Some(name) if faults.is_empty() => Ok(Routes::checked(routes, name)),
        Some(_) | None => Err(faults),
    }
}

/// Every route with a name, those with faults too, so that `default` can name them.
fn all_routes(entries: &[(Node, Node)], faults: &mut Faults) -> Vec<Route> {
    if entries.len() > ROUTES_MAX {
        faults.add("routes", format!("has {} routes; {ROUTES_MAX} is the most", entries.len()));
    }
    let mut routes = Vec::new();
    for (name, steps) in keys(entries, "routes", faults) {
        let place = within("routes", name);
        is_name(name, &place, faults);
        routes.push(Route { name: name.to_owned(), steps: route::steps(steps, &place, faults) });
    }
    routes
}

fn default_name(default: Option<&Node>, routes: &[Route], faults: &mut Faults) -> Option<String> {
    let names: HashSet<&str> = routes.iter().map(|route| route.name.as_str()).collect();
    let one_of = || {
        let shown: Vec<_> = routes.iter().take(ROUTES_MAX).map(|route| quoted(&route.name)).collect();
        format!("name one of {}", shown.join(", "))
    };
    match default {
        Some(Node::Text(name)) if names.contains(name.as_str()) => return Some(name.clone()),
        Some(Node::Text(name)) => {
            faults.add("default", format!("no route is named {}; {}", quoted(name), one_of()))
        }
        Some(other) => {
            faults.add("default", format!("must be the name of a route; it is {}", other.kind()));
        }
        None if names.len() > 1 => {
            faults.add("default", format!("missing, and there are several routes; {}", one_of()));
        }
        None => return routes.first().map(|route| route.name.clone()),
    }
    None
}
