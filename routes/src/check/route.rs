//! The rules of a route: which steps can follow each other.

use std::collections::HashSet;

use proto::orders::v1::{OrderStatus, RouteStep};

use crate::check::step::Draft;
use crate::faults::Faults;
use crate::yaml::Node;

/// Most steps of a route.
const STEPS_MAX: usize = 16;

/// The steps of a route that have no faults of their own.
pub(super) fn steps(route: &Node, place: &str, faults: &mut Faults) -> Vec<RouteStep> {
    let steps = match route {
        Node::List(steps) if !steps.is_empty() => steps,
        Node::List(_) | Node::Nothing => {
            faults.add(place, "has no steps; list at least one");
            return Vec::new();
        }
        Node::Boolean(_) | Node::Number | Node::Text(_) | Node::Mapping(_) => {
            let problem = "must be a list of steps, such as [inventory, payment, fulfilment]; it is";
            faults.add(place, format!("{problem} {}", route.kind()));
            return Vec::new();
        }
    };
    if steps.len() > STEPS_MAX {
        faults.add(place, format!("has {} steps; {STEPS_MAX} is the most", steps.len()));
    }
    let place_of = |i| format!("{place}[{i}]");
    let drafts: Vec<_> =
        steps.iter().enumerate().map(|(i, step)| Draft::read(step, place_of(i), faults)).collect();
    check_together(&drafts, faults);
    drafts.into_iter().filter_map(Draft::into_step).collect()
}

fn check_together(drafts: &[Draft<'_>], faults: &mut Faults) {
    let (mut names, mut statuses) = (HashSet::new(), HashSet::new());
    for (i, draft) in drafts.iter().enumerate() {
        if let Some(name) = draft.name
            && !names.insert(name)
        {
            faults.add(&draft.place, format!("step {name} occurs twice in the route; remove one"));
            continue;
        }
        let Some(status) = draft.leads_to.filter(|status| *status != OrderStatus::Unspecified) else {
            continue;
        };
        if status == OrderStatus::Fulfilled {
            if i + 1 < drafts.len() {
                let problem = "only the last step can lead to FULFILLED; move the step to the end";
                faults.add(draft.place_of_status(), problem);
            }
        } else if !statuses.insert(status) {
            let name = status.as_str_name().trim_start_matches("ORDER_STATUS_");
            let problem = format!("another step of the route leads to {name} already; change one of them");
            faults.add(draft.place_of_status(), problem);
        }
    }
    let fulfils = |draft: &Draft<'_>| draft.leads_to == Some(OrderStatus::Fulfilled);
    if let Some(last) = drafts.last()
        && last.leads_to.is_some()
        && !drafts.iter().any(fulfils)
    {
        faults.add(&last.place, "nothing fulfils the order: give the last step `status: FULFILLED`");
    }
}
