//! The plugin beside an agent that hangs. Needs root.

#[allow(dead_code, reason = "each of the tests uses its part")]
mod common;

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{Node, Ns, Outcome, finish};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
use serde_json::json;

const DUAL: [&str; 2] = ["10.244.1.0/24", "fd00:244:1::/64"];

/// How a process may hang that others know as the agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hang {
    /// It is stopped: the kernel takes connections for it, and nobody reads from them.
    Stopped,
    /// It was stopped for long: nobody can connect any more.
    Crowded,
    /// It accepts connections, and does nothing with them.
    Mute,
    /// It answers, a byte at a time, and never comes to the end.
    Drawling,
}

const WAYS: [Hang; 4] = [Hang::Stopped, Hang::Crowded, Hang::Mute, Hang::Drawling];

/// An agent that hangs; its socket goes with it.
struct Agent {
    socket: PathBuf,
    /// Never accepted from, or by the thread alone.
    _listener: OwnedFd,
    /// Those who wait before everybody else.
    _waiting: Vec<UnixStream>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    fn new(dir: &Path, hang: Hang) -> Self {
        let path = dir.join("agent.sock");
        // A queue of one: `UnixListener::bind` has a long one.
        let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("socket");
        bind(&listener, &SocketAddrUnix::new(&path).expect("path")).expect("bind");
        listen(&listener, if hang == Hang::Crowded { 0 } else { 64 }).expect("listen");
        let connect = || UnixStream::connect(&path).expect("connect");
        let waiting = if hang == Hang::Crowded { vec![connect()] } else { Vec::new() };
        let over = Arc::new(AtomicBool::new(false));
        let thread = matches!(hang, Hang::Mute | Hang::Drawling).then(|| {
            let (accepts, over) = (listener.try_clone().expect("descriptor"), over.clone());
            thread::spawn(move || accept(&accepts.into(), hang, &over))
        });
        Self { socket: path, _listener: listener, _waiting: waiting, over, thread }
    }
}

/// Takes connections, and keeps them open.
fn accept(listener: &UnixListener, hang: Hang, over: &AtomicBool) {
    let mut taken = Vec::new();
    while let Ok((mut stream, _)) = listener.accept() {
        if over.load(Ordering::SeqCst) {
            return;
        }
        if hang == Hang::Mute {
            taken.push(stream);
            continue;
        }
        // Until the other end leaves, which it does.
        thread::spawn(move || {
            while stream.write_all(b" ").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // It waits for one more.
            let _ = UnixStream::connect(&self.socket);
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Long enough for anything that ends at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a call gave; one that never ends is killed, and fails the test.
fn end(mut child: Child) -> Outcome {
    let give_up = Instant::now() + PATIENCE;
    while child.try_wait().expect("wait").is_none() {
        if Instant::now() > give_up {
            child.kill().expect("kill");
            panic!("it waits for the agent without end: {:?}", finish(child));
        }
        thread::sleep(Duration::from_millis(10));
    }
    finish(child)
}

/// A node whose plugin asks an agent there.
fn node(pods: &[(&str, &Ns)]) -> Node {
    let mut node = Node::new(&DUAL);
    for (id, pod) in pods {
        node.add(id, pod);
    }
    node.conf["agentSocket"] = json!(node.dir.path().join("agent.sock"));
    node
}

/// C3: DEL beside an agent that hangs, in whatever way, ends, says so, and leaves nothing.
#[test]
fn del_ends_beside_an_agent_that_hangs() {
    for hang in WAYS {
        let (pod, other) = (Ns::new("pod"), Ns::new("other"));
        let node = node(&[("a", &pod), ("b", &other)]);
        let agent = Agent::new(node.dir.path(), hang);
        for netns in [Some(pod.path()), None] {
            let outcome = end(node.start("DEL", "a", netns.as_deref(), &node.conf));
            let said = outcome.stderr.clone();
            outcome.success();
            let lines = said.matches("no answer within 2 seconds; it will notice by itself");
            assert_eq!(lines.count(), 1, "{hang:?}: {said}");
            assert!(said.contains("agent.sock"), "{hang:?}: {said}");
        }
        assert!(!pod.ip("-o link").contains("eth0"), "{hang:?}");
        assert_eq!(node.records().len(), 1, "{hang:?}: {:?}", node.records());
        assert!(other.ip("-o link").contains("eth0"), "{hang:?}");
        drop(agent);
        end(node.start("DEL", "b", Some(&other.path()), &node.conf)).success();
        node.assert_clean();
    }
}

/// C3, C7: STATUS and CHECK say what ADD would meet.
#[test]
fn status_and_check_tell_of_an_agent_that_hangs() {
    let pod = Ns::new("pod");
    let node = node(&[("a", &pod)]);
    for hang in WAYS {
        let agent = Agent::new(node.dir.path(), hang);
        for (command, code) in [("STATUS", 50), ("CHECK", 101)] {
            let (got, message, _) =
                end(node.start(command, "a", Some(&pod.path()), &node.conf)).failure();
            assert_eq!(got, code, "{hang:?}: {command}: {message}");
            assert!(message.contains("no answer within 2 seconds"), "{hang:?}: {message}");
        }
        drop(agent);
    }
}

/// C5: GC waits for an agent that hangs once, however many attachments it frees, and frees all of them;
/// those that are listed stay. Who waits for the records meanwhile gets them.
#[test]
fn gc_waits_once_for_an_agent_that_hangs_and_frees_all() {
    const GONE: [&str; 5] = ["g0", "g1", "g2", "g3", "g4"];
    for hang in WAYS {
        let kept = Ns::new("kept");
        let gone = GONE.map(|_| Ns::new("gone"));
        let mut pods = vec![("kept", &kept)];
        pods.extend(GONE.into_iter().zip(&gone));
        let mut node = node(&pods);
        let _agent = Agent::new(node.dir.path(), hang);
        let mut alone = node.conf.clone();
        alone.as_object_mut().expect("an object").remove("agentSocket");
        node.conf["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
        let gc = node.start("GC", "", None, &node.conf);
        // Beside it, by whom no agent is asked.
        let late = Ns::new("late");
        end(node.start("ADD", "late", Some(&late.path()), &alone)).success();
        end(node.start("DEL", "late", Some(&late.path()), &alone)).success();
        let outcome = end(gc);
        let said = outcome.stderr.clone();
        outcome.success();
        let lines = said.matches("no answer within 2 seconds; it will notice by itself");
        assert_eq!(lines.count(), 1, "{hang:?}: {said}");
        for pod in &gone {
            assert!(!pod.ip("-o link").contains("eth0"), "{hang:?}");
        }
        assert_eq!(node.records().len(), 1, "{hang:?}: {:?}", node.records());
        end(node.start("CHECK", "kept", Some(&kept.path()), &alone)).success();
        // Nothing is left to free, so nobody is asked.
        let again = end(node.start("GC", "", None, &node.conf));
        assert_eq!(again.stderr, "", "{hang:?}");
        again.success();
        end(node.start("DEL", "kept", Some(&kept.path()), &alone)).success();
        node.assert_clean();
    }
}

/// C2, C3: an ADD that the agent does not confirm fails, says for how long it waited, and leaves nothing;
/// several at once do not wait for each other.
#[test]
fn adds_beside_an_agent_that_hangs_fail_and_leave_nothing() {
    for hang in WAYS {
        let pods = [Ns::new("a"), Ns::new("b"), Ns::new("c")];
        let node = node(&[]);
        let _agent = Agent::new(node.dir.path(), hang);
        let ended = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for (n, pod) in pods.iter().enumerate() {
                let (node, ended) = (&node, &ended);
                scope.spawn(move || {
                    let add = node.start("ADD", &format!("c{n}"), Some(&pod.path()), &node.conf);
                    ended.lock().expect("whole").push(end(add));
                });
            }
        });
        for outcome in ended.into_inner().expect("whole") {
            let (code, message, details) = outcome.failure();
            assert_eq!(code, 11, "{hang:?}: {message}");
            assert!(message.contains("no answer within 5 seconds"), "{hang:?}: {message}");
            assert!(details.contains("sluiced"), "{hang:?}: {details}");
        }
        for pod in &pods {
            assert!(!pod.ip("-o link").contains("eth0"), "{hang:?}");
        }
        node.assert_clean();
    }
}
