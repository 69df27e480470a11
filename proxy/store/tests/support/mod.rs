//! An etcd of one's own on the loopback interface, and a connection to it that can be cut.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener as StdListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

/// How long etcd may take to start.
const START: Duration = Duration::from_secs(60);

/// How often a starting etcd is asked whether it is there.
const ASK: Duration = Duration::from_millis(20);

/// A running etcd with its data in a temporary directory. It ends when this is dropped.
pub(crate) struct Etcd {
    directory: TempDir,
    child: Option<Child>,
    client_port: u16,
    peer_port: u16,
    tls: bool,
}

impl Etcd {
    /// Without TLS.
    pub(crate) async fn start() -> Self {
        Self::started(false).await
    }

    /// With TLS, asking for a certificate of the client's.
    pub(crate) async fn start_tls() -> Self {
        Self::started(true).await
    }

    async fn started(tls: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        if tls {
            make_certificates(&directory.path().join("certificates"));
        }
        let (client_port, peer_port) = free_ports();
        let mut etcd = Self { directory, child: None, client_port, peer_port, tls };
        etcd.restart().await;
        etcd
    }

    /// Starts it on the same ports, and waits until it answers.
    ///
    /// A process that another test starts has copies of what this one had open until its `exec`, a
    /// port among them perhaps: where etcd ends, it is started again.
    pub(crate) async fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let deadline = Instant::now() + START;
        loop {
            self.child = Some(self.spawn());
            while self.is_running() {
                match self.connect().await {
                    Ok(_) => return,
                    Err(error) if Instant::now() > deadline => panic!("{}", self.silent(&error)),
                    Err(_) => sleep(ASK).await,
                }
            }
            assert!(Instant::now() < deadline, "etcd ended:\n{}", self.log());
        }
    }

    fn spawn(&self) -> Child {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer_port));
        let log = fs::File::create(self.directory.path().join("log")).unwrap();
        let mut command = Command::new("etcd");
        command
            .args(["--name", "sluice", "--unsafe-no-fsync"])
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("sluice={peer}")]);
        if self.tls {
            let file = |name: &str| self.certificates().join(name);
            command.arg("--cert-file").arg(file("server.pem"));
            command.arg("--key-file").arg(file("server.key"));
            command.arg("--trusted-ca-file").arg(file("ca.pem")).arg("--client-cert-auth");
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                panic!("etcd is not installed: apt-get install etcd-server")
            }
            Err(error) => panic!("cannot start etcd: {error}"),
        }
    }

    fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn silent(&self, error: &etcd_client::Error) -> String {
        format!("etcd does not answer: {error}\n{}", self.log())
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the child is not waited for yet");
            child.wait().expect("the child can be waited for");
        }
    }

    /// Removes all its data.
    pub(crate) fn wipe(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        fs::remove_dir_all(self.directory.path().join("data")).unwrap();
    }

    pub(crate) fn port(&self) -> u16 {
        self.client_port
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    /// Where the certificates are.
    pub(crate) fn certificates(&self) -> PathBuf {
        self.directory.path().join("certificates")
    }

    /// A client, once etcd answers.
    pub(crate) async fn client(&self) -> Client {
        let deadline = Instant::now() + START;
        loop {
            match self.connect().await {
                Ok(client) => return client,
                Err(error) if Instant::now() > deadline => panic!("{}", self.silent(&error)),
                Err(_) => sleep(ASK).await,
            }
        }
    }

    async fn connect(&self) -> Result<Client, etcd_client::Error> {
        let options = self.tls.then(|| {
            let read = |name: &str| fs::read(self.certificates().join(name)).unwrap();
            let tls = TlsOptions::new()
                .ca_certificate(Certificate::from_pem(read("ca.pem")))
                .identity(Identity::from_pem(read("client.pem"), read("client.key")));
            ConnectOptions::new().with_tls(tls)
        });
        let mut client = Client::connect([self.url()], options).await?;
        client.get("ready?", None).await?;
        Ok(client)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Two ports that are free now, below those that the kernel gives to outgoing connections: one of
/// those could be taken while nobody listens at it.
fn free_ports() -> (u16, u16) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 12_000 + (std::process::id() % 15_000) as u16;
    let mut free = std::iter::repeat_with(|| base + NEXT.fetch_add(1, Ordering::SeqCst))
        .take(5_000)
        .filter(|&port| StdListener::bind(("127.0.0.1", port)).is_ok());
    match (free.next(), free.next()) {
        (Some(first), Some(second)) => (first, second),
        _ => panic!("no free port from {base} on"),
    }
}

/// An authority with a server's and a client's certificate, and another authority.
fn make_certificates(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    let extensions = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
    fs::write(directory.join("extensions"), extensions).unwrap();
    let openssl = |arguments: &str| {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(directory)
            .output()
            .unwrap_or_else(|error| panic!("openssl: {error}: apt-get install openssl"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments}: {said}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for authority in ["ca", "other"] {
        openssl(&format!(
            "req -x509 {key} -keyout {authority}.key -out {authority}.pem -days 2 -subj /CN={authority}"
        ));
    }
    for name in ["server", "client"] {
        openssl(&format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile extensions -out {name}.pem"
        ));
    }
}

/// A forwarder of connections that can be cut, frozen and restored.
pub(crate) struct Proxy {
    port: u16,
    target: u16,
    frozen: Arc<AtomicBool>,
    task: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Forwards to that port.
    pub(crate) async fn start(target: u16) -> Self {
        let frozen = Arc::new(AtomicBool::new(false));
        // While it is cut, its port is nobody's.
        let (port, _) = free_ports();
        let mut proxy = Self { port, target, frozen, task: None };
        proxy.restore().await;
        proxy
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Closes all connections and refuses new ones.
    pub(crate) fn cut(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// Keeps all connections, and lets nothing through any more.
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::SeqCst);
    }

    /// Takes connections again, on the same port.
    pub(crate) async fn restore(&mut self) {
        let deadline = Instant::now() + START;
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", self.port)).await {
                Ok(listener) => break listener,
                // The old listener goes once its task has ended.
                Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("cannot listen on port {}: {error}", self.port),
            }
        };
        self.task = Some(tokio::spawn(forward(listener, self.target, self.frozen.clone())));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Forwards until it is aborted, and with it all connections.
async fn forward(listener: TcpListener, target: u16, frozen: Arc<AtomicBool>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { continue };
        let ((from_client, to_client), (from_server, to_server)) =
            (client.into_split(), server.into_split());
        connections.spawn(copy(from_client, to_server, frozen.clone()));
        connections.spawn(copy(from_server, to_client, frozen.clone()));
    }
}

async fn copy(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, frozen: Arc<AtomicBool>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if frozen.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
