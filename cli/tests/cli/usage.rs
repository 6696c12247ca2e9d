//! Errors of usage are reported in the user's terms.

use tokio::process::Command;

use crate::stage::{output_of, stderr, stdout};

fn waybill() -> Command {
    Command::new(env!("CARGO_BIN_EXE_waybill"))
}

#[tokio::test]
async fn a_bad_flag_is_a_usage_error() {
    let output = output_of(waybill().args(["dev", "--ops-addr", "nowhere"])).await;
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("--ops-addr"));
    assert!(!stderr(&output).contains("environment"));
}

#[tokio::test]
async fn a_bad_variable_is_named() {
    let output = output_of(waybill().arg("dev").env("OPS_ADDR", "nowhere")).await;
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("comes from the environment variable OPS_ADDR"));

    let output = output_of(waybill().args(["order", "get", "x"]).env("WAYBILL_GATEWAY", "nowhere")).await;
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("comes from the environment variable WAYBILL_GATEWAY"));
}

#[tokio::test]
async fn a_bad_secret_is_refused_without_being_shown() {
    for (flag, variable) in [("--api-key", "WAYBILL_API_KEY"), ("--token", "WAYBILL_TOKEN")] {
        for secret in ["", "se\u{301}same", "sesame\n"] {
            let get = ["order", "get", "x"];
            let by_flag = output_of(waybill().args(get).args([flag, secret])).await;
            let by_variable = output_of(waybill().args(get).env(variable, secret)).await;
            for (output, named) in [(by_flag, flag), (by_variable, variable)] {
                assert_eq!(output.status.code(), Some(64), "{secret:?}");
                assert!(stderr(&output).contains(named), "{}", stderr(&output));
                assert!(!stderr(&output).contains("same"), "{}", stderr(&output));
            }
        }
    }
}

#[tokio::test]
async fn help_does_not_show_secrets() {
    for command in ["order", "dev"] {
        for variable in ["WAYBILL_API_KEY", "WAYBILL_TOKEN"] {
            let output = output_of(waybill().args([command, "--help"]).env(variable, "sesame")).await;
            assert!(stdout(&output).contains(variable) && !stdout(&output).contains("sesame"));
        }
    }
}

#[tokio::test]
async fn stock_is_released_only_by_name_or_all_of_it_openly() {
    let output = output_of(waybill().args(["stock", "reconcile"])).await;
    assert_eq!(output.status.code(), Some(64));
    for way in ["--order", "--all", "--dry-run"] {
        assert!(stderr(&output).contains(way), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn a_gateway_behind_anything_but_http_is_a_usage_error() {
    let output = output_of(waybill().args(["order", "--gateway", "ftp://127.0.0.1:1", "get", "x"])).await;
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("http://HOST:PORT"), "{}", stderr(&output));
}

#[tokio::test]
async fn certificates_that_would_go_unused_or_do_not_go_together_are_refused() {
    for (gateway, flag) in [("http://127.0.0.1:1", "--ca"), ("https://127.0.0.1:1", "--cert")] {
        let path = env!("CARGO_MANIFEST_PATH");
        let order = output_of(waybill().args(["order", "--gateway", gateway, "get", "x", flag, path])).await;
        let health = output_of(waybill().args(["health", gateway, flag, path])).await;
        for output in [order, health] {
            assert_eq!(output.status.code(), Some(64));
            assert!(stderr(&output).contains(flag), "{}", stderr(&output));
            assert!(!stderr(&output).contains("cannot reach"), "{}", stderr(&output));
        }
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_or_has_no_end_is_a_usage_error() {
    for (path, said) in [("/nowhere", "No such file"), ("/dev/zero", "larger than")] {
        let output = output_of(waybill().args(["health", "https://127.0.0.1:1", "--ca", path])).await;
        assert_eq!(output.status.code(), Some(64));
        let all = [path, said];
        assert!(all.iter().all(|part| stderr(&output).contains(part)), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn a_password_in_an_address_is_refused_without_being_shown() {
    let address = "http://ada:sesame@127.0.0.1:1";
    for (args, variable) in [
        (&["health"][..], "WAYBILL_HEALTH"),
        (&["order", "get", "x"], "WAYBILL_GATEWAY"),
        (&["dead-letter", "list"], "WAYBILL_OPERATIONS"),
    ] {
        let output = output_of(waybill().args(args).env(variable, address)).await;
        assert_eq!(output.status.code(), Some(64), "{variable}: {}", stderr(&output));
        assert!(stderr(&output).contains("user or password"), "{}", stderr(&output));
        assert!(!stderr(&output).contains("sesame"), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn options_of_a_command_come_before_those_of_all() {
    let output = output_of(waybill().args(["order", "list", "--help"])).await;
    let help = stdout(&output);
    let at = |text: &str| help.find(text).unwrap_or_else(|| panic!("{text} not in {help}"));
    let in_order = ["Options:", "--status", "--limit", "--help", "Connection:", "--gateway", "--ca"];
    assert!(in_order.is_sorted_by_key(|text| at(text)), "{help}");
}

#[tokio::test]
async fn no_command_is_a_usage_error_and_help_is_none() {
    assert_eq!(output_of(&mut waybill()).await.status.code(), Some(64));
    assert_eq!(output_of(waybill().arg("--help")).await.status.code(), Some(0));
}

#[tokio::test]
async fn a_redrive_that_does_not_say_of_what_is_a_usage_error() {
    for choice in [&[][..], &["--step", ""], &["inventory-1", "--step", "inventory"]] {
        let output = output_of(waybill().args(["dead-letter", "redrive"]).args(choice)).await;
        assert_eq!(output.status.code(), Some(64), "{choice:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("letters"), "{}", stderr(&output));
    }
}
