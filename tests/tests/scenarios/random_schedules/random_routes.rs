//! Random route files: any steps in any order, as far as the rules of the file allow.

use std::fmt::Write;

use harness::test_steps::TEST_STEPS;
use proto::orders::v1::Route;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use routes::Routes;

const ROUTES_MAX: usize = 3;
const STEPS_MAX: usize = 6;
/// Steps with a fixed status, and that.
const BUILT_IN: [(&str, &str); 2] = [("inventory", "RESERVED"), ("payment", "PAID")];
/// The built-in step that can only be the last.
const LAST: &str = "fulfilment";

/// A route file.
pub(super) struct RandomRoutes {
    pub(super) file: String,
    routes: Routes,
}

impl RandomRoutes {
    /// The steps of its routes, and those that are built in.
    pub(super) fn running(&self) -> Vec<&'static str> {
        let mut running = BUILT_IN.map(|(step, _)| step).to_vec();
        running.push(LAST);
        let steps = self.routes.steps();
        running.extend(TEST_STEPS.into_iter().filter(|step| steps.contains(step)));
        running
    }

    /// What an order asks for, and the route that it has to take then.
    pub(super) fn choose(&self, random: &mut StdRng) -> (String, Route) {
        let mut names: Vec<_> = self.routes.names().collect();
        names.push("");
        let name = *names.choose(random).unwrap();
        (name.to_owned(), self.routes.route(name).unwrap())
    }
}

/// 1-3 routes of 1-6 steps, of which the first is the default.
pub(super) fn draw_routes(random: &mut StdRng) -> RandomRoutes {
    let mut file = "default: route-0\nroutes:\n".to_owned();
    for n in 0..random.random_range(1..=ROUTES_MAX) {
        writeln!(file, "  route-{n}:").unwrap();
        for step in draw_route(random) {
            writeln!(file, "    - {step}").unwrap();
        }
    }
    let routes = Routes::parse(file.as_bytes()).unwrap_or_else(|faults| panic!("{faults}:\n{file}"));
    RandomRoutes { file, routes }
}

/// The steps of a route, as the file has them.
fn draw_route(random: &mut StdRng) -> Vec<String> {
    let mut steps: Vec<_> = BUILT_IN.into_iter().map(|(step, _)| step).chain(TEST_STEPS).collect();
    steps.shuffle(random);
    steps.truncate(random.random_range(1..=STEPS_MAX));
    if random.random_bool(0.5) {
        steps.pop();
        steps.push(LAST);
    }
    let (last, others) = steps.split_last().unwrap();
    let mut free: Vec<_> = BUILT_IN.into_iter().filter(|(step, _)| !others.contains(step)).collect();
    let mut route: Vec<_> = others
        .iter()
        .map(|step| {
            if !TEST_STEPS.contains(step) {
                return (*step).to_owned();
            }
            let compensates = random.random_bool(0.5);
            // A step of one's own can lead to a status that no other step of the route leads to.
            let status = random.random_bool(0.3).then(|| free.pop()).flatten();
            let status = status.map_or(String::new(), |(_, status)| format!(", status: {status}"));
            format!("{{name: {step}, compensates: {compensates}{status}}}")
        })
        .collect();
    route.push(match *last {
        LAST => LAST.to_owned(),
        last if TEST_STEPS.contains(&last) => {
            format!("{{name: {last}, compensates: {}, status: FULFILLED}}", random.random_bool(0.5))
        }
        last => format!("{{name: {last}, status: FULFILLED}}"),
    });
    route
}
