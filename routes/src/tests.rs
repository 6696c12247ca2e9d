//! Good and bad route files.

use std::path::Path;

use clap::Parser;
use proto::orders::v1::OrderStatus::{self, Fulfilled, Paid, Reserved, Unspecified};
use proto::orders::v1::{Route, RouteStep};

use crate::{Routes, RoutesConfig};

/// Files and their faults.
const BAD: [(&str, &[&str]); 31] = [
    ("", &["the file is empty; define `routes`"]),
    ("# nothing but a comment", &["the file is empty; define `routes`"]),
    ("[a]", &["the file must be a mapping with the key `routes`; it is a list"]),
    ("default: a", &["routes: missing; define at least one route"]),
    ("routes:", &["routes: has no routes; define one"]),
    ("routes: {}", &["routes: has no routes; define one"]),
    ("routes: [a]", &["routes: must be a mapping of names to lists of steps; it is a list"]),
    ("routes: {a: [fulfilment]}\nRoutes: {}", &["Routes: unknown key; the keys here are default, routes"]),
    ("routes: {a: [fulfilment]}\ndefault: b", &[r#"default: no route is named "b"; name one of "a""#]),
    ("routes: {a: [fulfilment]}\ndefault: 1", &["default: must be the name of a route; it is a number"]),
    ("routes: {a: [fulfilment]}\ndefault:", &["default: must be the name of a route; it is empty"]),
    (
        "routes: {a: [fulfilment], b: [fulfilment]}",
        &[r#"default: missing, and there are several routes; name one of "a", "b""#],
    ),
    ("routes: {a: [fulfilment], a: [fulfilment]}", &["routes.a: occurs twice; remove or rename one"]),
    ("routes: {1: [fulfilment]}", &["routes: a key must be text; one is a number"]),
    (
        "routes: {A b: [fulfilment]}",
        &[concat!(
            r#"routes."A b": "A b" is not a valid name; use 1-32 characters of a-z, 0-9 and '-', starting with a "#,
            "letter"
        )],
    ),
    (
        "routes: {a: fulfilment}",
        &[concat!(
            "routes.a: must be a list of steps, such as [inventory, payment, fulfilment]; ",
            "it is text"
        )],
    ),
    ("routes: {a: []}", &["routes.a: has no steps; list at least one"]),
    ("routes: {a: }", &["routes.a: has no steps; list at least one"]),
    (
        "routes: {a: [1, true, {name: [b]}, {}, fulfilment]}",
        &[
            "routes.a[0]: a step must be a name or a mapping with the key `name`; it is a number",
            "routes.a[1]: a step must be a name or a mapping with the key `name`; it is a boolean",
            "routes.a[2].name: must be text; it is a list",
            "routes.a[3].name: missing; name the step",
        ],
    ),
    (
        "routes: {a: [end, {name: end}, -b, 1b, fulfilment]}",
        &[
            "routes.a[0]: `end` is reserved; choose another name",
            "routes.a[1].name: `end` is reserved; choose another name",
            r#"routes.a[2]: "-b" is not a valid name; use 1-32 characters of a-z, 0-9 and '-', starting with a letter"#,
            r#"routes.a[3]: "1b" is not a valid name; use 1-32 characters of a-z, 0-9 and '-', starting with a letter"#,
        ],
    ),
    (
        "routes: {a: [{name: b, compensate: true, name: c}, fulfilment]}",
        &[
            "routes.a[0].name: occurs twice; remove or rename one",
            "routes.a[0].compensate: unknown key; the keys here are name, compensates, status",
        ],
    ),
    (
        "routes: {a: [{name: b, compensates: yes, status: 1}, {name: c, status: ACCEPTED}, fulfilment]}",
        &[
            "routes.a[0].compensates: must be true or false; it is text",
            "routes.a[0].status: must be RESERVED, PAID or FULFILLED; it is a number",
            r#"routes.a[1].status: must be RESERVED, PAID or FULFILLED; it is "ACCEPTED""#,
        ],
    ),
    (
        "routes: {a: [inventory, b, inventory, b, fulfilment]}",
        &[
            "routes.a[2]: step inventory occurs twice in the route; remove one",
            "routes.a[3]: step b occurs twice in the route; remove one",
        ],
    ),
    (
        "routes: {a: [inventory, {name: b, status: RESERVED}, {name: c, status: PAID}, payment, fulfilment]}",
        &[
            "routes.a[1].status: another step of the route leads to RESERVED already; change one of them",
            "routes.a[3]: another step of the route leads to PAID already; change one of them",
        ],
    ),
    (
        "routes: {a: [fulfilment, {name: b, status: FULFILLED}, c]}",
        &[
            "routes.a[0]: only the last step can lead to FULFILLED; move the step to the end",
            "routes.a[1].status: only the last step can lead to FULFILLED; move the step to the end",
        ],
    ),
    (
        "routes: {a: [inventory, payment]}",
        &["routes.a[1]: nothing fulfils the order: give the last step `status: FULFILLED`"],
    ),
    (
        "routes: {a: [{name: inventory, compensates: false}, {name: payment, compensates: false, status: RESERVED}, \
         {name: fulfilment, compensates: true}]}",
        &[
            "routes.a[0].compensates: inventory always compensates, or its effect would remain; leave `compensates` out",
            "routes.a[1].compensates: payment always compensates, or its effect would remain; leave `compensates` out",
            "routes.a[1].status: payment cannot lead to RESERVED; leave `status` out, or write FULFILLED if it is the last step",
            "routes.a[2].compensates: fulfilment cannot compensate; leave `compensates` out",
        ],
    ),
    (
        "routes: {a: [{name: payment, status: FULFILLED}, fulfilment]}",
        &["routes.a[0].status: only the last step can lead to FULFILLED; move the step to the end"],
    ),
    ("routes:\n  a: [b\n", &["cannot be read as YAML: unclosed bracket '[' at line 2, column 6"]),
    (
        "routes: {a: [fulfilment]}\n---\n{}",
        &[
            "cannot be read as YAML: only single YAML document expected but multiple found at line 3, column 1",
        ],
    ),
    (
        "rotues: {}\nroutes:\n  a: []\n  b: [inventory]\ndefault: c",
        &[
            "rotues: unknown key; the keys here are default, routes",
            "routes.a: has no steps; list at least one",
            "routes.b[0]: nothing fulfils the order: give the last step `status: FULFILLED`",
            r#"default: no route is named "c"; name one of "a", "b""#,
        ],
    ),
];

fn faults(file: &str) -> Vec<String> {
    let Err(faults) = Routes::parse(file.as_bytes()) else { return Vec::new() };
    faults.to_string().lines().map(str::to_owned).collect()
}

fn route(name: &str, steps: &[(&str, bool, OrderStatus)]) -> Route {
    let step = |&(name, compensates, leads_to): &(&str, bool, OrderStatus)| RouteStep {
        name: name.to_owned(),
        compensates,
        leads_to: leads_to.into(),
    };
    Route { name: name.to_owned(), steps: steps.iter().map(step).collect() }
}

#[test]
fn every_fault_is_named_with_its_place_and_the_fix() {
    for (file, expected) in BAD {
        assert_eq!(faults(file), expected, "{file}");
    }
}

#[test]
fn a_file_has_bounds() {
    let steps = |count: usize| (1..count).map(|i| format!("s{i},")).collect::<String>() + "fulfilment";
    let routes = |count: usize| (0..count).map(|i| format!("r{i}: [fulfilment],")).collect::<String>();
    let name = |length: usize| "n".repeat(length);
    let file = |steps: &str| format!("routes: {{a: [{steps}]}}");

    assert_eq!(faults(&file(&steps(16))), [""; 0]);
    assert_eq!(faults(&file(&steps(17))), ["routes.a: has 17 steps; 16 is the most"]);
    assert_eq!(faults(&format!("default: r0\nroutes: {{{}}}", routes(32))), [""; 0]);
    let said = faults(&format!("default: r0\nroutes: {{{}}}", routes(33)));
    assert_eq!(said, ["routes: has 33 routes; 32 is the most"]);
    assert_eq!(faults(&file(&format!("{}, fulfilment", name(32)))), [""; 0]);
    assert_eq!(faults(&file(&format!("{}, fulfilment", name(33)))).len(), 1);

    let file_of = |bytes: usize| {
        let start = "routes: {a: [fulfilment]} #";
        start.to_owned() + &"-".repeat(bytes - start.len())
    };
    assert_eq!(faults(&file_of(64 * 1024)), [""; 0]);
    let said = faults(&file_of(64 * 1024 + 1));
    assert_eq!(said, ["larger than 64 KiB; define fewer routes or shorten the comments"]);
}

#[test]
fn long_names_are_shortened_in_faults() {
    let long = "x".repeat(60_000);
    for said in faults(&format!("{long}: 1\ndefault: {long}\nroutes: {{a: [{long}, \"b\\n\"]}}")) {
        assert!(said.len() < 300, "{said}");
    }
}

#[test]
fn a_file_that_is_not_text_is_refused_with_the_line() {
    let refused = Routes::parse(b"routes:\n  a: [fulfilment] # \xff").unwrap_err();
    assert_eq!(refused.to_string(), "line 2: not UTF-8; save the file as UTF-8");
}

#[test]
fn a_step_is_a_name_or_a_mapping() {
    let file = "
default: reviewed
routes:
  standard: [inventory, payment, fulfilment]
  reviewed:
    - inventory
    - fraud
    - payment
    - name: warehouse
      compensates: true
      status: FULFILLED
  digital: [{name: payment, status: FULFILLED}]
  odd: [{name: inventory, compensates: true, status: RESERVED}, {name: warehouse}, {name: fulfilment}]
";
    let routes = Routes::parse(file.as_bytes()).unwrap();
    let inventory = ("inventory", true, Reserved);
    let payment = ("payment", true, Paid);
    let fulfilment = ("fulfilment", false, Fulfilled);
    let expected = [
        route("standard", &[inventory, payment, fulfilment]),
        route(
            "reviewed",
            &[inventory, ("fraud", false, Unspecified), payment, ("warehouse", true, Fulfilled)],
        ),
        route("digital", &[("payment", true, Fulfilled)]),
        route("odd", &[inventory, ("warehouse", false, Unspecified), fulfilment]),
    ];
    for route in &expected {
        assert_eq!(routes.route(&route.name).as_ref(), Some(route));
    }
    assert_eq!(routes.names().collect::<Vec<_>>(), ["standard", "reviewed", "digital", "odd"]);
    assert_eq!(routes.route(""), Some(expected[1].clone()));
    assert_eq!(routes.route("unknown"), None);
    assert_eq!(routes.steps(), ["inventory", "payment", "fulfilment", "fraud", "warehouse"]);
}

#[test]
fn one_route_is_the_default_without_being_named() {
    let routes = Routes::parse(b"routes: {express: [fulfilment]}").unwrap();
    assert_eq!((routes.default_name(), routes.route("")), ("express", routes.route("express")));
}

#[test]
fn without_a_file_there_is_the_built_in_route() {
    let routes = Routes::read(&RoutesConfig::default()).unwrap();
    let file = Routes::parse(b"routes: {standard: [inventory, payment, fulfilment]}").unwrap();
    assert_eq!(routes, file);
    assert_eq!(routes.steps(), ["inventory", "payment", "fulfilment"]);
}

#[test]
fn the_example_in_deploy_can_be_used() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/routes.example.yaml");
    let routes = Routes::read(&RoutesConfig { routes_file: Some(path) }).unwrap();
    assert_eq!(routes.names().collect::<Vec<_>>(), ["standard", "reviewed", "warehouse"]);
}

#[test]
fn the_page_of_routes_shows_the_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let page = read("docs/routes.md");
    let shown = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let example = Routes::parse(read("deploy/routes.example.yaml").as_bytes()).unwrap();
    assert_eq!(Routes::parse(shown.as_bytes()), Ok(example));
}

#[test]
fn an_error_names_the_setting_the_file_and_every_fault() {
    #[derive(Parser)]
    struct Config {
        #[command(flatten)]
        routes: RoutesConfig,
    }
    let folder = tempfile::tempdir().unwrap();
    let read = |path: &Path| {
        let config = Config::parse_from(["program", "--routes-file", path.to_str().unwrap()]);
        Routes::read(&config.routes).unwrap_err().to_string()
    };

    let missing = folder.path().join("missing.yaml");
    let said = read(&missing);
    assert!(said.starts_with(&format!("ROUTES_FILE: {}: No such file", missing.display())), "{said}");

    let faulty = folder.path().join("faulty.yaml");
    std::fs::write(&faulty, "routes: {a: [], b: [b]}").unwrap();
    let lines = [
        &format!("ROUTES_FILE: {}:", faulty.display()),
        "routes.a: has no steps; list at least one",
        "routes.b[0]: nothing fulfils the order: give the last step `status: FULFILLED`",
        r#"default: missing, and there are several routes; name one of "a", "b""#,
    ];
    assert_eq!(read(&faulty), lines.join("\n"));
}
