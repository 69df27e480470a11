//! A running `sluice-dns`, clients for it, and an upstream that answers as a test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// Far longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(20);

/// A Service in a manifest.
pub(crate) const SHOP: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{name: http, port: 80}]}
"#;

/// Its name.
pub(crate) const WEB: &str = "web.shop.svc.cluster.local.";

/// A running `sluice-dns`; it is killed when this goes.
pub(crate) struct Dns {
    child: Child,
    log: Receiver<String>,
    seen: Vec<String>,
    /// Where it answers queries.
    pub(crate) addr: SocketAddr,
    /// Where it answers probes.
    pub(crate) probes: SocketAddr,
    /// Its directory of manifests.
    pub(crate) manifests: TempDir,
}

/// The command with flags that keep it to loopback and away from the machine's own resolvers.
pub(crate) fn command(source: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-dns"));
    command
        .arg(format!("--source={source}"))
        // No flag here that a test may want to give.
        .args([
            "--resolv-conf=/dev/null",
            "--ready-bind-address=",
            "--metrics-bind-address=",
            "--log-level=info",
        ])
        .args(["--health-bind-address=127.0.0.1:0"])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Dns {
    /// Starts on a free port of 127.0.0.1 with one manifest, and waits until it is synced.
    pub(crate) fn start(manifest: &str, flags: &[&str]) -> Self {
        Self::start_on("127.0.0.1:0", manifest, flags)
    }

    /// The same on another address.
    pub(crate) fn start_on(listen: &str, manifest: &str, flags: &[&str]) -> Self {
        let manifests = TempDir::new().expect("a temporary directory");
        write(manifests.path(), manifest);
        let source = format!("dir:{}", manifests.path().display());
        let mut dns = Self::launch_on(listen, &source, flags, manifests);
        dns.wait_for_log("synced");
        dns
    }

    /// Starts with any source, and waits until it serves.
    pub(crate) fn launch(source: &str, flags: &[&str]) -> Self {
        let manifests = TempDir::new().expect("a temporary directory");
        Self::launch_on("127.0.0.1:0", source, flags, manifests)
    }

    fn launch_on(listen: &str, source: &str, flags: &[&str], manifests: TempDir) -> Self {
        let mut child = command(source)
            .arg(format!("--listen={listen}"))
            .args(flags)
            .spawn()
            .expect("sluice-dns starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let mut dns =
            Self { child, log, seen: Vec::new(), addr: unknown, probes: unknown, manifests };
        dns.probes = last_word(&dns.wait_for_log("serving probes on "));
        dns.addr = last_word(&dns.wait_for_log("serving DNS on "));
        if dns.addr.ip().is_unspecified() {
            dns.addr.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        dns
    }

    /// Forgets the log's lines so far.
    pub(crate) fn forget_log(&mut self) {
        self.seen.clear();
    }

    /// Waits for a line of the log that holds a text, and returns the line.
    pub(crate) fn wait_for_log(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(line) = self.seen.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("no {text:?} in the log: {error}; it says {:#?}", self.seen),
            }
        }
    }

    /// Puts another manifest in place of the one it was started with.
    pub(crate) fn rewrite(&self, manifest: &str) {
        write(self.manifests.path(), manifest);
    }

    /// The process's number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)
            .expect("the process is there");
    }

    /// Makes it stand still, and waits until all of its threads do.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        eventually(|| {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("threads");
            for task in tasks {
                let stat = task.expect("a thread").path().join("stat");
                let text = std::fs::read_to_string(&stat).expect("its state");
                // The name before the state is in parentheses.
                let state = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
                if !state.starts_with('T') {
                    return Err(format!("{} runs: {text}", stat.display()));
                }
            }
            Ok(())
        });
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("a child")
    }

    /// The status line of a probe.
    pub(crate) fn probe(&self, path: &str) -> String {
        self.http(path).lines().next().unwrap_or_default().to_owned()
    }

    /// What is served over HTTP, with its head.
    pub(crate) fn http(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.probes).expect("probes are served");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: dns\r\n\r\n").expect("sent");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("a response");
        response
    }

    /// Asks by UDP.
    pub(crate) fn udp(&self, name: &str, kind: RecordType) -> Message {
        ask_udp(self.addr, &query(name, kind))
    }

    /// Asks by TCP.
    pub(crate) fn tcp(&self, name: &str, kind: RecordType) -> Message {
        ask_tcp(self.addr, &query(name, kind))
    }

    /// Asks by UDP until the answer is as expected.
    pub(crate) fn udp_until(&self, name: &str, kind: RecordType, expected: &[&str]) {
        eventually(|| {
            let got = answers(&self.udp(name, kind));
            if got == expected { Ok(()) } else { Err(format!("{got:#?}")) }
        });
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes the manifest as an editor does: whole, under its name at once.
fn write(directory: &Path, manifest: &str) {
    let temporary = directory.join(".cluster.yaml.new");
    std::fs::write(&temporary, manifest).expect("written");
    std::fs::rename(&temporary, directory.join("cluster.yaml")).expect("renamed");
}

fn last_word(line: &str) -> SocketAddr {
    let word = line.rsplit(' ').next().expect("a word");
    word.parse().unwrap_or_else(|_| panic!("{line:?} ends with no address"))
}

/// Tries until it is right, or for a long time.
pub(crate) fn eventually(mut check: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = check() {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A query with recursion desired and without EDNS.
pub(crate) fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    query
}

/// The answer section in text, sorted.
pub(crate) fn answers(message: &Message) -> Vec<String> {
    let mut answers: Vec<_> = message.answers.iter().map(ToString::to_string).collect();
    answers.sort();
    answers
}

/// Asks by UDP from a connected socket, which takes answers from the address it asked only.
pub(crate) fn ask_udp(addr: SocketAddr, query: &Message) -> Message {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect(addr).expect("connected");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    socket.send(&query.to_vec().expect("a message")).expect("sent");
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("an answer");
    let answer = Message::from_vec(&buffer[..length]).expect("a message");
    assert_eq!(answer.metadata.id, query.metadata.id);
    answer
}

/// Asks by TCP.
pub(crate) fn ask_tcp(addr: SocketAddr, query: &Message) -> Message {
    let mut stream = TcpStream::connect(addr).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    write_framed(&mut stream, &query.to_vec().expect("a message"));
    let answer = read_framed(&mut stream).expect("an answer");
    let answer = Message::from_vec(&answer).expect("a message");
    assert_eq!(answer.metadata.id, query.metadata.id);
    answer
}

/// Writes a message with its length.
pub(crate) fn write_framed(stream: &mut impl Write, message: &[u8]) {
    let length = u16::try_from(message.len()).expect("short enough");
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).expect("sent");
}

/// Reads a message with its length; `None` at the end of the stream.
pub(crate) fn read_framed(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// How a query reached the stub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Via {
    Udp,
    Tcp,
}

/// An upstream resolver whose answers are a function of the query: any number of messages, in
/// order. Its threads end with the test's process.
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
}

impl Upstream {
    pub(crate) fn start(
        answer: impl Fn(&Message, Via) -> Vec<Message> + Send + Clone + 'static,
    ) -> Self {
        let (udp, tcp) = (0..16)
            .find_map(|_| {
                let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
                let tcp = TcpListener::bind(udp.local_addr().expect("bound")).ok()?;
                Some((udp, tcp))
            })
            .expect("a port that is free for both");
        let addr = udp.local_addr().expect("bound");
        let answer_tcp = answer.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
                let query = Message::from_vec(&buffer[..length]).expect("a query");
                for message in answer(&query, Via::Udp) {
                    // The server may have stopped listening after the right one.
                    let _ = udp.send_to(&message.to_vec().expect("a message"), peer);
                }
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.expect("accepted");
                while let Some(query) = read_framed(&mut stream) {
                    let query = Message::from_vec(&query).expect("a query");
                    for message in answer_tcp(&query, Via::Tcp) {
                        write_framed(&mut stream, &message.to_vec().expect("a message"));
                    }
                }
            }
        });
        Self { addr }
    }

    /// The flag that names it.
    pub(crate) fn flag(&self) -> String {
        format!("--upstream={}", self.addr)
    }
}

/// A response of an upstream with these A records at the question's name.
pub(crate) fn response(query: &Message, code: ResponseCode, addresses: &[[u8; 4]]) -> Message {
    let mut response = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    response.metadata.response_code = code;
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_queries(query.queries.iter().cloned());
    let name = query.queries[0].name();
    response.add_answers(addresses.iter().map(|address| {
        Record::from_rdata(name.clone(), 300, RData::A(Ipv4Addr::from(*address).into()))
    }));
    response
}
