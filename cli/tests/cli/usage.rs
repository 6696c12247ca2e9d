//! What the user got wrong is said in the user's words.

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
async fn a_bad_api_key_is_refused_without_being_shown() {
    for key in ["", "se\u{301}same", "sesame\n"] {
        let get = ["order", "get", "x"];
        let by_flag = output_of(waybill().args(get).args(["--api-key", key])).await;
        let by_variable = output_of(waybill().args(get).env("WAYBILL_API_KEY", key)).await;
        for output in [by_flag, by_variable] {
            assert_eq!(output.status.code(), Some(64), "{key:?}");
            assert!(stderr(&output).contains("WAYBILL_API_KEY"), "{}", stderr(&output));
            assert!(!stderr(&output).contains("same"), "{}", stderr(&output));
        }
    }
}

#[tokio::test]
async fn help_does_not_show_the_api_key() {
    for command in ["order", "dev"] {
        let output = output_of(waybill().args([command, "--help"]).env("WAYBILL_API_KEY", "sesame")).await;
        assert!(stdout(&output).contains("WAYBILL_API_KEY") && !stdout(&output).contains("sesame"));
    }
}

#[tokio::test]
async fn a_gateway_behind_anything_but_plain_http_is_a_usage_error() {
    for (url, remedy) in [("https://127.0.0.1:1", "TLS"), ("ftp://127.0.0.1:1", "http://HOST:PORT")] {
        let output = output_of(waybill().args(["order", "--gateway", url, "get", "x"])).await;
        assert_eq!(output.status.code(), Some(64));
        assert!(stderr(&output).contains(remedy), "{}", stderr(&output));
    }
}

#[tokio::test]
async fn no_command_is_a_usage_error_and_help_is_none() {
    assert_eq!(output_of(&mut waybill()).await.status.code(), Some(64));
    assert_eq!(output_of(waybill().arg("--help")).await.status.code(), Some(0));
}
