//! Sockets whose backend is gone: found by what the programs noted, in whichever network namespace,
//! and destroyed. Needs root.

use std::{
    collections::HashSet,
    io::{self, Read as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use sluice_abi::proto;
use sluice_proxy::{
    dataplane::SocketKind,
    wake::{Diag, Doomed, Waker, destroy_here, doomed},
};
use sluice_tests::{
    PATIENCE,
    kernel::{Lab, isolated},
    netns::NetNs,
    wait_for,
};

const VIP: &str = "10.96.0.10:80";
const VIP6: &str = "[fd00:96::10]:80";
const OTHER_VIP: &str = "10.96.0.11:80";

const ECONNABORTED: i32 = 103;
const ECONNREFUSED: i32 = 111;

fn attached(label: &str, test: impl FnOnce(&mut Lab) -> Result<()> + Send) -> Result<()> {
    isolated(label, |_: &NetNs, cgroup: PathBuf| {
        let mut lab = Lab::with_cgroup(label, false, cgroup)?;
        lab.dataplane.attach_cgroup()?;
        test(&mut lab)
    })
}

fn server(local: &str) -> Result<(UdpSocket, String)> {
    let socket = UdpSocket::bind(local)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let address = socket.local_addr()?.to_string();
    Ok((socket, address))
}

fn connected(local: &str, to: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(local)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to).with_context(|| format!("connect {to}"))?;
    Ok(socket)
}

/// The sockets whose backend is gone, where Services have no endpoints but those in the tables.
fn lost(lab: &Lab, kind: SocketKind) -> Result<Vec<Doomed>> {
    let peers = lab.dataplane.view().sock_peers(kind)?;
    Ok(doomed(kind, &peers, lab.tables(), |_| Some(Vec::new())))
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// S22: who waits on a connected datagram socket wakes up when the backend goes, whether others are
/// left, none is left, or the Service is gone; the same socket, connected anew, gets a backend that
/// is there, and is refused where there is none. A backend that comes back serves again.
#[test]
fn connected_datagram_socket_wakes_when_its_backend_goes() -> Result<()> {
    attached("wake", |lab| {
        let cases = [(VIP, "127.0.0.1:0"), (VIP6, "[::1]:0"), ("[::ffff:10.96.0.10]:80", "[::]:0")];
        for (vip, local) in cases {
            let at = if vip == VIP6 { "[::1]:0" } else { "127.0.0.1:0" };
            let name = if vip == VIP6 { VIP6 } else { VIP };
            let (one, one_name) = server(at)?;
            let (two, two_name) = server(at)?;
            lab.service(name, proto::UDP, &[&one_name])?;
            let client = connected(local, vip)?;
            let answered_by = |server: &UdpSocket| -> Result<()> {
                client.send(b"ping")?;
                let (_, from) = server.recv_from(&mut [0; 8])?;
                server.send_to(b"pong", from)?;
                client.recv(&mut [0; 8])?;
                Ok(())
            };
            let woken = |lab: &Lab| -> Result<Option<i32>> {
                let waiting = client.try_clone()?;
                std::thread::scope(|scope| {
                    let waiter = scope.spawn(move || errno(waiting.recv(&mut [0; 8])));
                    let done = destroy_here(&lost(lab, SocketKind::Datagram)?)?;
                    ensure!(done.destroyed.len() == 1, "{done:?}");
                    Ok(waiter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                })
            };
            answered_by(&one)?;
            // Another comes: nothing is lost.
            lab.service(name, proto::UDP, &[&one_name, &two_name])?;
            assert_eq!(lost(lab, SocketKind::Datagram)?, vec![]);
            // Its own goes.
            lab.service(name, proto::UDP, &[&two_name])?;
            assert_eq!(woken(lab)?, Some(ECONNABORTED), "{vip}: removed");
            client.connect(vip)?;
            answered_by(&two)?;
            // The last one goes, and is back.
            lab.service(name, proto::UDP, &[])?;
            assert_eq!(woken(lab)?, Some(ECONNABORTED), "{vip}: the last one removed");
            assert_eq!(errno(client.connect(vip)), Some(ECONNREFUSED));
            lab.service(name, proto::UDP, &[&two_name])?;
            client.connect(vip)?;
            answered_by(&two)?;
            // The Service goes.
            lab.remove(name, proto::UDP)?;
            assert_eq!(woken(lab)?, Some(ECONNABORTED), "{vip}: deleted");
            drop(client);
            // A process that another test starts may hold it for a moment more.
            wait_for("the socket to be forgotten", PATIENCE, || {
                let left = lab.dataplane.view().sock_peers(SocketKind::Datagram).ok()?;
                left.is_empty().then_some(())
            })?;
        }
        Ok(())
    })
}

/// S24: a stream whose backend is gone is reset on both sides; others go on.
#[test]
fn stream_is_reset_when_its_backend_is_gone() -> Result<()> {
    attached("wake-tcp", |lab| {
        for (vip, local) in [(VIP, "127.0.0.1:0"), (VIP6, "[::1]:0")] {
            let gone = TcpListener::bind(local)?;
            let stays = TcpListener::bind(local)?;
            let (gone_name, stays_name) =
                (gone.local_addr()?.to_string(), stays.local_addr()?.to_string());
            lab.service(vip, proto::TCP, &[&gone_name])?;
            let mut client = TcpStream::connect(vip)?;
            let (mut served, _) = gone.accept()?;
            lab.service(vip, proto::TCP, &[&stays_name])?;
            let mut other = TcpStream::connect(vip)?;
            let (mut other_served, _) = stays.accept()?;
            for stream in [&client, &served, &other, &other_served] {
                stream.set_read_timeout(Some(PATIENCE))?;
            }
            let done = destroy_here(&lost(lab, SocketKind::Stream)?)?;
            assert_eq!(done.destroyed.len(), 1, "{done:?}");
            assert_eq!(errno(client.read(&mut [0])), Some(ECONNABORTED));
            let reset = served.read(&mut [0]).expect_err("the client is gone");
            assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
            io::Write::write_all(&mut other, b"x")?;
            other_served.read_exact(&mut [0])?;
        }
        Ok(())
    })
}

/// S22: what it takes is in proportion to the sockets concerned. Of thousands of sockets that are
/// connected to other backends, or to other ports, or to nothing of ours, none is named by the
/// kernel, and none is touched.
#[test]
fn waking_is_in_proportion_to_the_sockets_concerned() -> Result<()> {
    const UNRELATED: usize = 3_000;
    const CONCERNED: usize = 5;
    attached("wake-many", |lab| {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 20_000, 20_000)?;
        // The same port, on another address: it is the backend that counts.
        let (_gone, gone_name) = server("127.0.0.1:0")?;
        let port = gone_name.parse::<SocketAddr>()?.port();
        let (_beside, beside_name) = server(&format!("127.0.0.2:{port}"))?;
        let (_elsewhere, elsewhere_name) = server("127.0.0.1:0")?;
        lab.service(OTHER_VIP, proto::UDP, &[&beside_name])?;
        let mut unrelated = Vec::new();
        for n in 0..UNRELATED {
            let to = [OTHER_VIP, &elsewhere_name, &beside_name][n % 3];
            unrelated.push(connected("127.0.0.1:0", to)?);
        }
        lab.service(VIP, proto::UDP, &[&gone_name])?;
        let concerned: Vec<UdpSocket> =
            (0..CONCERNED).map(|_| connected("127.0.0.1:0", VIP)).collect::<Result<_>>()?;
        lab.remove(VIP, proto::UDP)?;

        let sockets = lost(lab, SocketKind::Datagram)?;
        assert_eq!(sockets.len(), CONCERNED);
        let done = destroy_here(&sockets)?;
        assert_eq!((done.destroyed.len(), done.named), (CONCERNED, CONCERNED));
        for socket in concerned {
            assert_eq!(errno(socket.recv(&mut [0])), Some(ECONNABORTED));
        }
        for socket in unrelated {
            socket.send(b"x").context("an unrelated socket")?;
        }
        Ok(())
    })
}

/// A socket that was closed or connected elsewhere since it was found is left alone.
#[test]
fn socket_that_moved_on_is_left_alone() -> Result<()> {
    attached("wake-late", |lab| {
        let (_one, one) = server("127.0.0.1:0")?;
        let (two, two_name) = server("127.0.0.1:0")?;
        lab.service(VIP, proto::UDP, &[&one])?;
        let moved = connected("127.0.0.1:0", VIP)?;
        let closed = connected("127.0.0.1:0", VIP)?;
        lab.service(VIP, proto::UDP, &[&two_name])?;
        let sockets = lost(lab, SocketKind::Datagram)?;
        assert_eq!(sockets.len(), 2);
        let port = one.parse::<SocketAddr>()?.port();
        let named =
            Diag::open()?.connected_to(SocketKind::Datagram, None, sluice_abi::Be16::new(port))?;
        assert_eq!(
            named.iter().map(|socket| socket.cookie).collect::<HashSet<_>>(),
            sockets.iter().map(|socket| socket.cookie).collect(),
        );
        moved.connect(VIP)?;
        drop(closed);
        wait_for("one of the sockets to go", PATIENCE, || {
            let port = sluice_abi::Be16::new(port);
            let left = Diag::open().ok()?.connected_to(SocketKind::Datagram, None, port).ok()?;
            left.is_empty().then_some(())
        })?;
        for socket in &named {
            assert!(!Diag::open()?.destroy(SocketKind::Datagram, socket)?, "{socket:?}");
        }
        assert_eq!(destroy_here(&sockets)?.destroyed.len(), 0);
        moved.send(b"x")?;
        two.recv_from(&mut [0])?;
        Ok(())
    })
}

/// S22: sockets are found in the node's namespace, in one that has a name, and in one that only its
/// processes lead to.
#[test]
fn sockets_are_woken_in_every_network_namespace() -> Result<()> {
    attached("wake-pods", |lab| {
        let (_server, backend) = server("127.0.0.1:0")?;
        lab.service(VIP, proto::UDP, &[&backend])?;
        let noted = |lab: &Lab| lab.dataplane.view().sock_peers(SocketKind::Datagram);
        let here = connected("127.0.0.1:0", VIP)?;
        let pod = NetNs::new("wake-named")?;
        pod.ip("link set lo up")?;
        let there = pod.run(|| connected("127.0.0.1:0", VIP))??;
        let script = "ip link set lo up && exec 3<>/dev/udp/10.96.0.10/80 && exec cat <&3";
        let mut nameless = Command::new("unshare")
            .args(["--net", "bash", "-c", script])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("unshare")?;
        let found = wait_for("three sockets in three namespaces", PATIENCE, || {
            let peers = noted(lab).ok()?;
            let namespaces: HashSet<u64> = peers.iter().map(|(_, peer)| peer.netns).collect();
            (peers.len() == 3 && namespaces.len() == 3).then_some(())
        });
        if found.is_err() {
            nameless.kill()?;
        }
        found?;

        lab.service(VIP, proto::UDP, &["127.0.0.1:9"])?;
        let waker = Waker::start(Vec::new)?;
        waker.wake(lost(lab, SocketKind::Datagram)?);
        let woken = wait_for("all to be woken", PATIENCE, || {
            (waker.destroyed(SocketKind::Datagram) == 3).then_some(())
        });
        if woken.is_err() {
            nameless.kill()?;
        }
        let output = nameless.wait_with_output()?;
        woken.with_context(|| format!("problem: {:?}", waker.problem()))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(said.contains("connection abort"), "{said}");
        for socket in [here, there] {
            assert_eq!(errno(socket.recv(&mut [0])), Some(ECONNABORTED));
        }
        assert_eq!(waker.problem(), None);
        Ok(())
    })
}

/// A namespace that is gone is told, and does not keep the others waiting.
#[test]
fn namespace_that_is_not_found_is_a_problem_that_is_told() -> Result<()> {
    attached("wake-nowhere", |lab| {
        let (_server, backend) = server("127.0.0.1:0")?;
        lab.service(VIP, proto::UDP, &[&backend])?;
        let client = connected("127.0.0.1:0", VIP)?;
        lab.remove(VIP, proto::UDP)?;
        let mut sockets = lost(lab, SocketKind::Datagram)?;
        let stray = Doomed { netns: u64::MAX, cookie: 1, ..sockets[0] };
        sockets.insert(0, stray);
        let waker = Waker::start(Vec::new)?;
        waker.wake(sockets);
        assert_eq!(errno(client.recv(&mut [0])), Some(ECONNABORTED));
        let problem = wait_for("the problem", PATIENCE, || waker.problem())?;
        assert!(
            problem.contains("18446744073709551615") && problem.contains("hostPID"),
            "{problem}"
        );
        waker.wake(Vec::new());
        wait_for("the end of the problem", PATIENCE, || waker.problem().is_none().then_some(()))
    })
}
