use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixListener;

use super::*;

fn key() -> Key {
    Key { network: "pods".into(), container_id: "c1".into(), interface: "eth0".into() }
}

const ADD: Event<'static> = Event::Add { record: "slu0,10.0.0.2.json" };

/// Serves one connection with `answer` and returns what was asked.
fn with_agent(answer: &'static str, event: Event<'_>) -> (Result<Told, Error>, serde_json::Value) {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    thread::scope(|scope| {
        let agent = scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).expect("read");
            stream.write_all(answer.as_bytes()).expect("write");
            serde_json::from_str(&line).expect("JSON")
        });
        let told = tell(&socket, event, &key());
        (told, agent.join().expect("agent"))
    })
}

#[test]
fn the_agent_is_told_and_its_consent_awaited() {
    let (told, asked) = with_agent("{\"version\":1,\"ok\":true}\n", ADD);
    told.expect("consent");
    assert_eq!(asked["request"], "endpoint-add");
    assert_eq!(asked["version"], 1);
    assert_eq!(asked["containerId"], "c1");
    assert_eq!(asked["interface"], "eth0");
    assert_eq!(asked["record"], "slu0,10.0.0.2.json");
    let (told, asked) = with_agent("{\"version\":1,\"ok\":true}", Event::Del { ifindex: Some(7) });
    told.expect("an answer may end with the connection");
    assert_eq!(asked["request"], "endpoint-del");
    assert_eq!(asked.get("record"), None);
    assert_eq!(asked["hostInterface"], key().host_interface());
    assert_eq!(asked["hostIfindex"], 7);
}

/// The plugin deletes the interface itself unless it is told in so many words that it is gone.
#[test]
fn only_an_agent_that_says_so_has_deleted_the_interface() {
    for (answer, unlinked) in [
        ("{\"version\":1,\"ok\":true,\"data\":{\"unlinked\":true}}\n", true),
        ("{\"version\":1,\"ok\":true,\"data\":{\"unlinked\":false}}\n", false),
        ("{\"version\":1,\"ok\":true,\"data\":{}}\n", false),
        ("{\"version\":1,\"ok\":true}\n", false),
    ] {
        let told = with_agent(answer, Event::Del { ifindex: Some(7) }).0.expect(answer);
        assert_eq!(told, Told { unlinked }, "{answer}");
    }
}

#[test]
fn a_refusal_is_passed_on_with_its_hint() {
    let answer = "{\"version\":1,\"ok\":false,\"error\":\"map full\",\"hint\":\"raise it\"}\n";
    let error = with_agent(answer, ADD).0.expect_err("refused");
    assert_eq!(error.code(), 11);
    assert!(error.to_string().contains("map full"), "{error}");
    assert_eq!(error.hint().as_deref(), Some("raise it"));
}

#[test]
fn an_answer_that_is_none_is_an_error() {
    for answer in ["", "\n", "hello\n", "{\"version\":1}\n"] {
        let error = with_agent(answer, ADD).0.expect_err(answer);
        assert_eq!(error.code(), 11, "{answer}");
    }
}

#[test]
fn an_absent_agent_does_not_hold_up_del() {
    let dir = tempfile::tempdir().expect("directory");
    let error = tell(&dir.path().join("none"), Event::Del { ifindex: Some(7) }, &key())
        .expect_err("absent");
    assert!(error.to_string().contains("does not exist"), "{error}");
}

/// An agent that is up but hangs is given up after the bound, not waited for without end.
#[test]
fn a_silent_agent_is_given_up() {
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("agent.sock");
    let _listener = UnixListener::bind(&socket).expect("bind");
    let error = tell(&socket, Event::Del { ifindex: Some(7) }, &key()).expect_err("silent");
    assert!(error.to_string().contains("within 2 seconds"), "{error}");
}
