//! Clients in other languages, each made from our protos by the tools of its language, go through the same story.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use harness::certificates::{self, Authority};
use harness::languages::{self, ROOT, at, folder, found, generate, source, succeeds};
use harness::{Deployment, Line, Options, Process, eventually, free_port, say, skip};
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};

/// Says what is installed, which takes longer than to find that it is.
const INSTALLED: &str = "packages/installed";
const SERVICE_CONFIG: &str = "proto/orders/v1/orders_grpc_service_config.json";

/// Protos of others that the client in TypeScript is made from, too.
const DETAILS: &str = "node_modules/google-proto-files/google/rpc/error_details.proto";
const HEALTH: &str = "node_modules/grpc-health-check/proto";

/// Installs unless the same is installed already.
fn install(folder: &Path, wanted: &str, by: impl FnOnce()) {
    let (wanted, installed) = (fs::read(folder.join(wanted)).unwrap(), folder.join(INSTALLED));
    if fs::read(&installed).ok().as_ref() == Some(&wanted) {
        return;
    }
    let packages = installed.parent().unwrap();
    if packages.exists() {
        fs::remove_dir_all(packages).unwrap();
    }
    by();
    fs::create_dir_all(packages).unwrap();
    fs::write(installed, wanted).unwrap();
}

/// The client in Go, built once.
fn go() -> Option<Command> {
    static BUILD: OnceLock<Option<PathBuf>> = OnceLock::new();
    let program = BUILD.get_or_init(|| languages::go("clients/go"));
    let program = program.as_ref()?.to_str().unwrap();
    Some(at(&source("clients/go"), program))
}

/// The client in Python.
fn python() -> Option<Command> {
    if !found("python3", &["-m", "pip", "--version"]) {
        return None;
    }
    let folder = folder("clients/python");
    let (packages, generated) = (folder.join("packages"), folder.join("gen"));
    install(&folder, "requirements.txt", || {
        // Somebody's own settings of where to install must not stand in the way of --target.
        let own = [("PIP_USER", "0"), ("PIP_REQUIRE_VIRTUALENV", "0"), ("PIP_ROOT_USER_ACTION", "ignore")];
        let flags = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"];
        let what = ["--requirement", "requirements.txt", "--target", "packages"];
        succeeds(at(&folder, "python3").envs(own).args(flags).args(what));
    });
    fs::create_dir_all(&generated).unwrap();
    let mut protoc = at(Path::new(ROOT), "python3");
    protoc.env("PYTHONPATH", &packages).args(["-m", "grpc_tools.protoc", "-I", "proto"]);
    for kind in ["python", "pyi", "grpc_python"] {
        protoc.arg(format!("--{kind}_out={}", generated.display()));
    }
    let protos = ["order.proto", "order_event.proto", "order_service.proto"];
    succeeds(protoc.args(protos.map(|name| format!("proto/orders/v1/{name}"))));
    let mut command = at(&source("clients/python"), "python3");
    let path = std::env::join_paths([packages, generated]).unwrap();
    // What is printed is looked at while it runs.
    command.args(["-u", "story.py"]).env("PYTHONPATH", path);
    Some(command)
}

/// A program of the client in TypeScript, all of which are built once.
fn typescript(program: &str) -> Option<Command> {
    static BUILD: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = BUILD.get_or_init(|| {
        (found("node", &["--version"]) && found("npm", &["--version"])).then(|| {
            let folder = folder("clients/typescript");
            install(&folder, "package-lock.json", || {
                succeeds(at(&folder, "npm").args(["ci", "--no-audit", "--no-fund"]));
            });
            generate(&folder, &[&["node_modules/google-proto-files", "--path", DETAILS], &[HEALTH]]);
            for script in ["check", "build"] {
                succeeds(at(&folder, "npm").args(["run", script]));
            }
            folder
        })
    });
    let mut command = at(&source("clients/typescript"), "node");
    command.arg(folder.as_ref()?.join("dist").join(program));
    Some(command)
}

/// The client in Java.
fn java() -> Option<Command> {
    if !found("mvn", &["--version"]) {
        return None;
    }
    let folder = folder("clients/java");
    let maven = |folder: &Path| {
        let mut maven = at(folder, "mvn");
        maven.args(["--batch-mode", "--quiet"]);
        maven.arg(format!("-Dproto.dir={}", Path::new(ROOT).join("proto").display()));
        maven
    };
    // What runs it is fetched here too.
    succeeds(maven(&folder).args(["compile", "exec:java", "-Dexec.skip"]));
    let mut command = maven(&source("clients/java"));
    command.args(["--offline", "exec:java", "--file"]).arg(folder.join("pom.xml"));
    Some(command)
}

/// Runs a client, cuts its connection in the middle of its watch, and lets the order end while it is away.
async fn tells_the_story(language: &str, client: Option<Command>) {
    let Some(mut client) = client else { return };
    let page = free_port();
    let gateway = vec![("CORS_ALLOWED_ORIGINS", format!("http://127.0.0.1:{page}"))];
    let mut waybill = Deployment::start_with(Options { gateway, ..Options::default() }).await;
    let few = vec![("RATE_LIMIT", "2".to_owned()), ("RATE_BURST", "10".to_owned())];
    let limited = waybill.gateway_with("limited", few).await;
    let line = Line::lay(&waybill.gateway.grpc_addr).await;

    waybill.processor("fulfilment").pause();
    client
        .env("WAYBILL_ADDR", &waybill.gateway.grpc_addr)
        .env("WAYBILL_WATCH_ADDR", line.addr())
        .env("WAYBILL_LIMITED_ADDR", &limited.grpc_addr)
        .env("WAYBILL_PAGE_PORT", page.to_string());
    let files = tempfile::tempdir().unwrap();
    let mut client = Process::start(&format!("client in {language}"), client, files.path());
    let paid = |line: &str| (line.starts_with("watched: ") && line.contains("PAID")).then_some(());
    client.line("a watched payment", paid).await;
    line.cut();
    let cut_off = |line: &str| line.starts_with("cut off").then_some(());
    waybill.processor("fulfilment").resume();
    eventually("the order's end", async || {
        waybill.subjects().await.iter().any(|subject| subject.contains(".fulfilled.")).then_some(())
    })
    .await;
    client.line("the cut, noticed", cut_off).await;
    line.mend();
    let status = client.ended().await;
    let output = client.output();
    say(&format!("--- client in {language} ---\n{output}---"));
    assert!(status.success(), "{status}");

    let watched = output.lines().filter(|line| line.starts_with("watched: "));
    let revisions: Vec<_> = watched.filter_map(|line| line.rsplit(' ').next()).collect();
    let messages = waybill.messages().await;
    let stored: Vec<_> = messages.iter().map(|message| message.sequence.to_string()).collect();
    assert_eq!(
        (stored.len(), revisions),
        (4, stored.iter().map(String::as_str).collect()),
        "the log has one order, which was watched"
    );
    assert_eq!(output.lines().filter_map(cut_off).count(), 1);
}

/// Runs a client against a gateway that speaks TLS and asks for an API key.
async fn is_let_in(language: &str, client: Option<Command>) {
    const KEY: &str = "a key of the test";
    let Some(mut client) = client else { return };
    let files = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let ca = certificates::replace(files.path(), "ca.crt", &authority.pem());
    let hash: String = Sha256::digest(KEY).iter().map(|byte| format!("{byte:02x}")).collect();
    let keys =
        certificates::replace(files.path(), "keys", &format!("{hash} shop orders:write,orders:read\n"));
    let waybill = Deployment::start_with(Options::default()).await;
    let mut guarded = authority.gateway().settings(files.path());
    guarded.push(("API_KEYS_FILE", keys.display().to_string()));
    let guarded = waybill.gateway_with("guarded", guarded).await;

    client.env("WAYBILL_ADDR", &guarded.grpc_addr).env("WAYBILL_CA", ca).env("WAYBILL_API_KEY", KEY);
    let mut client = Process::start(&format!("client in {language}"), client, files.path());
    let status = client.ended().await;
    let output = client.output();
    say(&format!("--- client in {language}, with TLS and an API key ---\n{output}---"));
    assert!(status.success(), "{status}");
    assert!(output.lines().any(|line| line.starts_with("watched: ") && line.contains("FULFILLED")));
}

#[tokio::test]
async fn go_tells_the_story() {
    tells_the_story("Go", go()).await;
    is_let_in("Go", go()).await;
}

#[tokio::test]
async fn python_tells_the_story() {
    tells_the_story("Python", python()).await;
    is_let_in("Python", python()).await;
}

#[tokio::test]
async fn typescript_tells_the_story() {
    tells_the_story("TypeScript", typescript("node.js")).await;
    is_let_in("TypeScript", typescript("node.js")).await;
}

#[tokio::test]
async fn a_page_in_a_browser_tells_the_story() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path =
        || std::env::split_paths(&path).map(|folder| folder.join("chromium")).find(|path| path.exists());
    let Some(chromium) = std::env::var_os("CHROMIUM").map(PathBuf::from).or_else(on_path) else {
        return skip("no chromium");
    };
    let client = typescript("browser.js").map(|mut client| {
        client.env("CHROMIUM", chromium);
        client
    });
    tells_the_story("a browser's page", client).await;
}

#[tokio::test]
async fn java_tells_the_story() {
    tells_the_story("Java", java()).await;
    is_let_in("Java", java()).await;
}

/// What the service config does for a client.
#[tokio::test]
async fn the_service_config_waits_for_a_late_gateway_and_repeats_what_a_dying_one_did_not_answer() {
    let (Some(client), Some(impatient)) = (go(), go()) else { return };
    let waybill = Deployment::start_with(Options { replicas: 0, ..Options::default() }).await;
    let addr = format!("127.0.0.1:{}", free_port());
    let files = tempfile::tempdir().unwrap();
    let mut client = outage(client, &[], &addr, files.path());
    client.line("its first call", |line| (line == "calling").then_some(())).await;
    // Has the same repeats, and does not wait: when it has given up, they alone would not have done.
    let mut impatient = outage(impatient, &["--impatient"], &addr, files.path());
    impatient.line("a call that fails", |line| line.starts_with("failed: ").then_some(())).await;
    drop(impatient);
    assert!(!client.output().contains("failed: "), "{}", client.output());

    let mut gateway = waybill.gateway_at("late", &addr).await;
    for death in 0..3 {
        let before = waybill.subjects().await.len();
        eventually("further orders", async || (waybill.subjects().await.len() > before + 20).then_some(()))
            .await;
        gateway.process.kill();
        gateway = waybill.gateway_at(&format!("after-{death}"), &addr).await;
    }
    let before = waybill.subjects().await.len();
    eventually("further orders", async || (waybill.subjects().await.len() > before + 20).then_some(())).await;
    client.signal(Signal::SIGTERM);
    let status = client.ended().await;
    let output = client.output();
    say(&format!("--- client in Go, three gateways killed ---\n{output}---"));
    assert!(status.success(), "{status}");
    let numbers = output.lines().last().unwrap().split(|c: char| !c.is_ascii_digit());
    let numbers: Vec<usize> = numbers.filter_map(|number| number.parse().ok()).collect();
    let [orders, attempts, failed] = numbers[..] else { panic!("{output}") };
    assert_eq!(waybill.subjects().await.len(), orders, "each order is there once");
    // An answer that broke off after its first bytes is not repeated by gRPC. There are few of them.
    assert!(attempts - orders > 3 * failed, "{failed} calls failed");
}

fn outage(mut client: Command, how: &[&str], addr: &str, files: &Path) -> Process {
    client.arg("outage").args(how).env("WAYBILL_ADDR", addr);
    Process::start(&format!("client in an outage {}", how.concat()), client, files)
}

#[test]
fn the_documentation_shows_what_runs_here() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/clients.md")).unwrap();
    let sources = [
        (Path::new(ROOT).join(SERVICE_CONFIG), "json\n"),
        (source("clients/go").join("main.go"), "go\n"),
        (source("clients/python").join("story.py"), "python\n"),
        (source("clients/typescript").join("src/story.ts"), "ts\n"),
        (source("clients/typescript").join("src/node.ts"), "ts\n"),
        (source("clients/typescript").join("src/page.ts"), "ts\n"),
        (source("clients/java").join("src/main/java/Story.java"), "java\n"),
    ];
    let sources = sources.map(|(path, kind)| (fs::read_to_string(path).unwrap(), kind));
    // Every other part is inside of a fence.
    for block in page.split("```").skip(1).step_by(2).filter(|block| !block.starts_with("sh\n")) {
        let is_shown = |(source, kind): &(String, &str)| {
            block.strip_prefix(kind).is_some_and(|text| !text.is_empty() && source.contains(text))
        };
        assert!(sources.iter().any(is_shown), "not as it runs:\n{block}");
    }
    let config = format!("```json\n{}```", sources[0].0);
    assert!(page.contains(&config), "the whole service config is shown");
}
