//! DNS over TLS, to clients and to upstreams.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use sluice_dns::answer::Domain;
use sluice_dns::forward::Forwarder;
use sluice_dns::resolver::Resolver;
use sluice_dns::server::{Server, TlsSocket};
use sluice_dns::tls::Identity;
use tempfile::TempDir;

use crate::support::{
    Dns, SHOP, Upstream, WEB, answers, command, eventually, query, read_framed, response,
    write_framed,
};

/// Far longer than anything takes that works.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Certificates in a directory of their own.
struct Certificates(TempDir);

/// Writes the certificate of an authority of that name, and its key.
pub(crate) fn write_authority(directory: &Path, name: &str) {
    let arguments =
        format!("req -x509 {KEY} -keyout {name}.key -out {name}.pem -days 2 -subj /CN={name}");
    openssl(directory, &arguments);
}

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("openssl: {error}: apt-get install openssl"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments}: {said}");
}

impl Certificates {
    /// With an authority of that name.
    fn new(authorities: &[&str]) -> Self {
        let it = Self(TempDir::new().expect("a temporary directory"));
        for name in authorities {
            write_authority(it.0.path(), name);
        }
        it
    }

    fn openssl(&self, arguments: &str) {
        openssl(self.0.path(), arguments);
    }

    /// A certificate for a name, `DNS:NAME` or `IP:ADDRESS`.
    fn issue(&self, authority: &str, name: &str, subject: &str) {
        let extensions = format!("subjectAltName={subject}\nextendedKeyUsage=serverAuth\n");
        std::fs::write(self.path("extensions"), extensions).expect("written");
        self.openssl(&format!(
            "req -new {KEY} -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial \
             -days 2 -extfile extensions -out {name}.pem"
        ));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Puts one certificate with its key in place of another.
    fn replace(&self, old: &str, new: &str) {
        for end in ["pem", "key"] {
            let (new, old) =
                (self.path(&format!("{new}.{end}")), self.path(&format!("{old}.{end}")));
            std::fs::rename(new, old).expect("renamed");
        }
    }

    fn serving(&self, name: &str) -> Vec<String> {
        vec![
            format!("--tls-cert={}", self.path(&format!("{name}.pem")).display()),
            format!("--tls-key={}", self.path(&format!("{name}.key")).display()),
            "--tls-listen=127.0.0.1:0".to_owned(),
        ]
    }
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

type Client = rustls::StreamOwned<ClientConnection, TcpStream>;

/// Connects, trusting that authority.
fn connect(addr: SocketAddr, authority: &Path) -> io::Result<Client> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).expect("certificates") {
        roots.add(certificate.expect("a certificate")).expect("usable");
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("known versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::IpAddress(addr.ip().into());
    let client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = rustls::StreamOwned::new(client, stream);
    stream.conn.complete_io(&mut stream.sock)?;
    Ok(stream)
}

fn receive(stream: &mut impl Read) -> Message {
    Message::from_vec(&read_framed(stream).expect("an answer")).expect("a message")
}

fn start(flags: &[String]) -> (Dns, SocketAddr) {
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let mut dns = Dns::start(SHOP, &flags);
    let line = dns.wait_for_log("serving DNS over TLS on ");
    let addr = line.rsplit(' ').next().and_then(|word| word.parse().ok());
    (dns, addr.unwrap_or_else(|| panic!("{line:?} ends with no address")))
}

/// D12: clients that speak TLS get the same answers, several on one connection, and are counted as
/// such; who speaks no TLS on that port costs the others nothing.
#[test]
fn clients_are_served_over_tls() {
    let certificates = Certificates::new(&["ca", "other"]);
    certificates.issue("ca", "server", "IP:127.0.0.1");
    let (dns, addr) = start(&certificates.serving("server"));
    let mut plain = TcpStream::connect(addr).expect("connected");
    write_framed(&mut plain, &query(WEB, RecordType::A).to_vec().expect("a message"));
    let _silent = TcpStream::connect(addr).expect("connected");

    let mut client = connect(addr, &certificates.path("ca.pem")).expect("certified");
    let queries = [RecordType::A, RecordType::AAAA, RecordType::TXT].map(|kind| query(WEB, kind));
    for query in &queries {
        write_framed(&mut client, &query.to_vec().expect("a message"));
    }
    for query in &queries {
        let reply = receive(&mut client);
        assert_eq!(reply.metadata.id, query.metadata.id);
        assert_eq!(reply.queries, query.queries);
    }
    let mut rest = Vec::new();
    // What is no TLS gets an alert at most, and then the end.
    let _ = plain.read_to_end(&mut rest);
    assert!(rest.len() < 64, "{rest:?}");
    assert!(connect(addr, &certificates.path("other.pem")).is_err(), "certified by another");
    eventually(|| {
        let text = dns.http("/metrics");
        let found = text.lines().any(|line| {
            line.contains("proto=\"tls\",family=\"1\",type=\"A\"") && line.ends_with(" 1")
        });
        if found { Ok(()) } else { Err(text) }
    });
}

/// D12: a new certificate counts without a restart, for new connections; one that does not fit its
/// key changes nothing.
#[test]
fn the_certificate_is_read_again() {
    let certificates = Certificates::new(&["ca", "new"]);
    certificates.issue("ca", "server", "IP:127.0.0.1");
    certificates.issue("new", "next", "IP:127.0.0.1");
    let (mut dns, addr) = start(&certificates.serving("server"));
    let (old, new) = (certificates.path("ca.pem"), certificates.path("new.pem"));
    let good = std::fs::read(certificates.path("server.pem")).expect("read");
    std::fs::copy(certificates.path("next.pem"), certificates.path("server.pem")).expect("copied");
    dns.wait_for_log("the old one stays");
    assert!(connect(addr, &old).is_ok() && connect(addr, &new).is_err());
    std::fs::write(certificates.path("server.pem"), good).expect("written");
    let mut earlier = connect(addr, &old).expect("certified");
    certificates.replace("server", "next");
    eventually(|| connect(addr, &new).map(drop).map_err(|error| error.to_string()));
    assert!(connect(addr, &old).is_err());
    write_framed(&mut earlier, &query(WEB, RecordType::A).to_vec().expect("a message"));
    // It may have been idle for too long; what it does get is an answer.
    if let Some(reply) = read_framed(&mut earlier) {
        assert_eq!(answers(&Message::from_vec(&reply).expect("a message")).len(), 1);
    }
}

/// D12: a certificate that changes after it was read and before it is followed counts, too.
#[test]
fn a_certificate_that_changes_early_is_read_again() {
    let certificates = Certificates::new(&["ca", "new"]);
    certificates.issue("ca", "server", "IP:127.0.0.1");
    certificates.issue("new", "next", "IP:127.0.0.1");
    let [file, key] = ["server.pem", "server.key"].map(|name| certificates.path(name));
    let identity = Arc::new(Identity::load(&file, &key).expect("they fit"));
    certificates.replace("server", "next");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    let domain = Domain::new("cluster.local", 5).expect("a domain");
    let resolver = Arc::new(Resolver::new(domain, Forwarder::new([], 0)));
    let socket = TlsSocket::bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let addr = socket.addr;
    let mut server = Server::start(Vec::new(), &resolver).expect("it serves");
    server.serve_tls(socket, &identity, &resolver).expect("it serves");
    let (old, new) = (certificates.path("ca.pem"), certificates.path("new.pem"));
    assert!(connect(addr, &old).is_ok(), "what was read is served");
    runtime.spawn(async move { identity.watch().await });
    eventually(|| connect(addr, &new).map(drop).map_err(|error| error.to_string()));
}

/// An upstream over TLS with that certificate, and how many connections it has had.
fn secure_upstream(certificates: &Certificates, name: &str) -> (SocketAddr, Arc<AtomicUsize>) {
    let file = |end: &str| certificates.path(&format!("{name}.{end}"));
    let chain = CertificateDer::pem_file_iter(file("pem")).expect("certificates");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(file("key")).expect("a key");
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("known versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they fit");
    let (config, count) = (Arc::new(config), Arc::new(AtomicUsize::new(0)));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (addr, connections) = (listener.local_addr().expect("bound"), Arc::clone(&count));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
            let mut stream = rustls::StreamOwned::new(connection, stream.expect("accepted"));
            connections.fetch_add(1, Ordering::Relaxed);
            std::thread::spawn(move || {
                while let Some(query) = read_framed(&mut stream) {
                    let query = Message::from_vec(&query).expect("a query");
                    let reply = response(&query, ResponseCode::NoError, &[[192, 0, 2, 1]]);
                    write_framed(&mut stream, &reply.to_vec().expect("a message"));
                }
                let _ = stream.flush();
            });
        }
    });
    (addr, count)
}

/// D12: an upstream is asked over TLS, again and again on one connection.
#[test]
fn upstreams_are_asked_over_tls() {
    let certificates = Certificates::new(&["ca"]);
    certificates.issue("ca", "upstream", "DNS:dns.example");
    let (addr, connections) = secure_upstream(&certificates, "upstream");
    let authorities = format!("--upstream-tls-ca={}", certificates.path("ca.pem").display());
    let dns = Dns::start("", &[&format!("--upstream=tls://{addr}#dns.example"), &authorities]);
    for name in ["a.example.", "b.example.", "c.example."] {
        for ask in [Dns::udp, Dns::tcp] {
            let reply = ask(&dns, name, RecordType::A);
            assert_eq!(answers(&reply), [format!("{name} 300 IN A 192.0.2.1")]);
        }
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

/// D12: an upstream whose certificate is for another name, or by nobody that is trusted, is not
/// believed, and the next one is asked.
#[test]
fn an_upstream_with_a_wrong_certificate_is_passed_over() {
    let certificates = Certificates::new(&["ca", "other"]);
    certificates.issue("ca", "named", "DNS:dns.example");
    certificates.issue("other", "stranger", "DNS:dns.example");
    let (named, _) = secure_upstream(&certificates, "named");
    let (stranger, _) = secure_upstream(&certificates, "stranger");
    let plain =
        Upstream::start(|query, _| vec![response(query, ResponseCode::NoError, &[[192, 0, 2, 9]])]);
    let authorities = format!("--upstream-tls-ca={}", certificates.path("ca.pem").display());
    for (addr, name) in [(named, "another.example"), (stranger, "dns.example")] {
        let secure = format!("--upstream=tls://{addr}#{name}");
        let dns = Dns::start("", &[&secure, &plain.flag(), &authorities]);
        let reply = dns.udp("a.example.", RecordType::A);
        assert_eq!(answers(&reply), ["a.example. 300 IN A 192.0.2.9"]);
        let failed =
            format!("sluice_dns_upstream_failures_total{{proxy_name=\"forward\",to=\"{addr}\"}} 1");
        assert!(dns.http("/metrics").contains(&failed), "{}", dns.http("/metrics"));

        let alone = Dns::start("", &[&secure, &authorities]);
        let reply = alone.udp("a.example.", RecordType::A);
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    }
}

/// A certificate that cannot be used is told at the start, with its file.
#[test]
fn a_certificate_that_cannot_be_used_is_told() {
    let certificates = Certificates::new(&["ca", "other"]);
    let failure = |certificate: &Path, key: &Path| {
        let output = command("dir:/tmp")
            .arg("--listen=127.0.0.1:0")
            .arg(format!("--tls-cert={}", certificate.display()))
            .arg(format!("--tls-key={}", key.display()))
            .output()
            .expect("it runs");
        assert!(!output.status.success());
        String::from_utf8(output.stderr).expect("text")
    };
    let [ca, other, none] = ["ca.pem", "other.key", "none.pem"].map(|name| certificates.path(name));
    let error = failure(&ca, &other);
    assert!(error.contains("--tls-cert") && error.contains("ca.pem"), "{error}");
    let error = failure(&none, &other);
    assert!(error.contains("cannot read") && error.contains("none.pem"), "{error}");
    let error = failure(&other, &other);
    assert!(error.contains("has no certificate"), "{error}");
}
