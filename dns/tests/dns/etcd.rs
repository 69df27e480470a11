//! A real etcd behind the server: away at first, there, gone, and back.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tempfile::TempDir;

use crate::support::{Dns, eventually};

/// An etcd of one's own; it is killed when this goes.
struct Etcd {
    data: TempDir,
    client: String,
    peer: String,
    child: Option<Child>,
}

impl Etcd {
    /// Chooses its ports, and does not start it yet.
    fn new() -> Self {
        let [client, peer] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let url = |socket: &TcpListener| format!("http://{}", socket.local_addr().expect("bound"));
        let data = TempDir::new().expect("a temporary directory");
        Self { data, client: url(&client), peer: url(&peer), child: None }
    }

    fn start(&mut self) {
        let mut command = Command::new("etcd");
        command
            .args(["--name=sluice", "--unsafe-no-fsync", "--log-level=error"])
            .arg(format!("--data-dir={}", self.data.path().join("data").display()))
            .arg(format!("--listen-client-urls={}", self.client))
            .arg(format!("--advertise-client-urls={}", self.client))
            .arg(format!("--listen-peer-urls={}", self.peer))
            .arg(format!("--initial-advertise-peer-urls={}", self.peer))
            .arg(format!("--initial-cluster=sluice={}", self.peer))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap_or_else(|error| match error.kind() {
            ErrorKind::NotFound => panic!("this test needs etcd: apt-get install etcd-server"),
            _ => panic!("cannot start etcd: {error}"),
        }));
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the child is not waited for yet");
            child.wait().expect("a child");
        }
    }

    /// Puts a Service as the kube-apiserver does, once etcd takes it.
    fn put_service(&self, name: &str, address: &str) {
        let key = format!("/registry/services/specs/shop/{name}");
        let value = format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"shop"}},
            "spec":{{"clusterIP":"{address}","clusterIPs":["{address}"],"ports":[{{"port":80}}]}}}}"#
        );
        eventually(|| {
            let output = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &self.client, "--command-timeout=2s", "put", &key, &value])
                .output()
                .unwrap_or_else(|error| {
                    panic!("this test needs etcdctl: apt-get install etcd-client ({error})")
                });
            if output.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        });
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// D10: SERVFAIL and not ready before the store was read, never NXDOMAIN; what was known is answered
/// while the store is away, and what is new when it is back.
#[test]
fn the_store_may_come_late_go_and_come_back() {
    let mut etcd = Etcd::new();
    let mut dns = Dns::launch(&format!("etcd:{}", etcd.client), &[]);
    let (web, late) = ("web.shop.svc.cluster.local.", "late.shop.svc.cluster.local.");
    let code = |dns: &Dns, name| dns.udp(name, RecordType::A).metadata.response_code;
    dns.wait_for_log("what was read stays");
    assert_eq!(code(&dns, web), ResponseCode::ServFail);
    assert_eq!(dns.probe("/ready"), "HTTP/1.1 503 Service Unavailable");
    assert_eq!(dns.probe("/health"), "HTTP/1.1 200 OK");

    etcd.start();
    etcd.put_service("web", "10.96.0.10");
    dns.wait_for_log("synced");
    dns.udp_until(web, RecordType::A, &[&format!("{web} 5 IN A 10.96.0.10")]);
    assert_eq!(dns.probe("/ready"), "HTTP/1.1 200 OK");
    assert_eq!(code(&dns, late), ResponseCode::NXDomain);

    dns.forget_log();
    etcd.kill();
    dns.wait_for_log("what was read stays");
    dns.udp_until(web, RecordType::A, &[&format!("{web} 5 IN A 10.96.0.10")]);
    assert_eq!(dns.probe("/ready"), "HTTP/1.1 200 OK");

    etcd.start();
    etcd.put_service("late", "10.96.0.11");
    dns.udp_until(late, RecordType::A, &[&format!("{late} 5 IN A 10.96.0.11")]);
}
