//! The connection to one member of an etcd cluster.

use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, GetOptions, Identity, KvClient, TlsOptions, WatchClient,
    WatchOptions, WatchStream,
};
use tokio::time::timeout;

use super::position::Header;
use crate::stream::Closed;
use crate::{EtcdEndpoint, EtcdOptions, SourceError};

/// How long the TCP and TLS handshakes may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long etcd may take for one answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How often an idle connection is probed, and how long the answer may take: a member that hangs is
/// noticed within their sum. etcd drops clients that probe more often than every five seconds (its
/// `--grpc-keepalive-min-time`).
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));

/// The most objects of one answer to begin with.
const PAGE: i64 = 500;

/// The largest answer that is accepted. etcd holds an answer of the watch to a little over its
/// `--max-request-bytes` (1.5 MiB unless changed), a page may have many such values.
const MAX_ANSWER: usize = 64 << 20;

/// Why a member cannot be followed any more.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody reads the stream any more.
    Closed,
    /// What is known has to be listed again; why.
    Relist(String),
    /// The member cannot be read.
    Away {
        /// Why.
        error: String,
        /// Whether it answered, and refused.
        answered: bool,
    },
}

impl Failure {
    pub(super) fn away(error: impl Into<String>) -> Self {
        Self::Away { error: error.into(), answered: false }
    }
}

impl From<Closed> for Failure {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

impl From<etcd_client::Error> for Failure {
    fn from(error: etcd_client::Error) -> Self {
        if is_compacted(&error) {
            return Self::Relist(describe(&error));
        }
        Self::Away { error: describe(&error), answered: is_refusal(&error) }
    }
}

/// etcd's `ErrGRPCCompacted`. The same code also means that an answer is too large.
fn is_compacted(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status)
        if i32::from(status.code()) == OUT_OF_RANGE && status.message().contains("compacted"))
}

/// The answer is larger than [`MAX_ANSWER`].
fn is_too_large(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status)
        if i32::from(status.code()) == OUT_OF_RANGE && status.message().contains("too large"))
}

/// A gRPC status code; see <https://grpc.io/docs/guides/status-codes/>.
const OUT_OF_RANGE: i32 = 11;

/// etcd answered, and the same question will get the same answer.
fn is_refusal(error: &etcd_client::Error) -> bool {
    // INVALID_ARGUMENT, PERMISSION_DENIED, FAILED_PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED and
    // UNAUTHENTICATED.
    matches!(error, etcd_client::Error::GRpcStatus(status)
        if [3, 7, 9, OUT_OF_RANGE, 12, 16].contains(&i32::from(status.code())))
}

/// What went wrong, down to the system's error.
fn describe(error: &etcd_client::Error) -> String {
    let (mut text, mut source) = match error {
        etcd_client::Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        etcd_client::Error::TransportError(error) => (error.to_string(), error.source()),
        error => (error.to_string(), None),
    };
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

/// Connects to the members in turn.
#[derive(Debug)]
pub(super) struct Connector {
    endpoints: Vec<EtcdEndpoint>,
    current: usize,
    options: EtcdOptions,
}

impl Connector {
    /// # Errors
    /// Options that can never work.
    pub(super) fn new(
        endpoints: Vec<EtcdEndpoint>,
        options: &EtcdOptions,
    ) -> Result<Self, SourceError> {
        let options = options.clone();
        if let (None, Some(endpoint)) = (&options.ca, endpoints.iter().find(|e| e.tls)) {
            return Err(SourceError::NoAuthority { endpoint: endpoint.to_string() });
        }
        match (&options.cert, &options.key) {
            (Some(_), None) => return Err(SourceError::HalfIdentity { given: "--etcd-cert" }),
            (None, Some(_)) => return Err(SourceError::HalfIdentity { given: "--etcd-key" }),
            _ => {}
        }
        match (&options.user, &options.password) {
            (Some(_), None) => return Err(SourceError::HalfUser { given: "user" }),
            (None, Some(_)) => return Err(SourceError::HalfUser { given: "password" }),
            _ => {}
        }
        // Read once now, so that a wrong path shows at the start.
        tls(&options)?;
        Ok(Self { endpoints, current: 0, options })
    }

    /// How many members there are; at least one.
    pub(super) fn count(&self) -> usize {
        self.endpoints.len().max(1)
    }

    /// The member whose turn it is.
    pub(super) fn endpoint(&self) -> String {
        self.endpoints.get(self.current).map(ToString::to_string).unwrap_or_default()
    }

    /// Passes the turn on.
    pub(super) fn advance(&mut self) {
        self.current = (self.current + 1) % self.count();
    }

    /// Connects to the member whose turn it is.
    pub(super) async fn connect(&self) -> Result<Connection, Failure> {
        let Some(endpoint) = self.endpoints.get(self.current) else {
            return Err(Failure::away("no endpoint is given"));
        };
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEPALIVE.0, KEEPALIVE.1)
            .with_keep_alive_while_idle(true)
            // A member that lost the others ends its watches instead of falling silent.
            .with_require_leader(true);
        if let (Some(user), Some(password)) = (&self.options.user, &self.options.password) {
            options = options.with_user(user, password);
        }
        if endpoint.tls {
            // Read anew: certificates are rotated.
            let tls = tls(&self.options).map_err(|error| Failure::away(error.to_string()))?;
            options = options.with_tls(tls);
        }
        let client =
            timeout(REQUEST_TIMEOUT, Client::connect([endpoint.to_string()], Some(options)))
                .await
                .map_err(|_| no_answer())??;
        Ok(Connection {
            kv: client.kv_client().max_decoding_message_size(MAX_ANSWER),
            watch: client.watch_client().max_decoding_message_size(MAX_ANSWER),
            _client: client,
        })
    }
}

fn no_answer() -> Failure {
    Failure::away(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))
}

/// The TLS configuration out of the files that the options name.
fn tls(options: &EtcdOptions) -> Result<TlsOptions, SourceError> {
    let read = |option: &'static str, path: &Path| {
        fs::read(path).map_err(|source| SourceError::ReadFile {
            option,
            path: path.to_owned(),
            source,
        })
    };
    let mut tls = TlsOptions::new();
    if let Some(ca) = &options.ca {
        tls = tls.ca_certificate(Certificate::from_pem(read("--etcd-cacert", ca)?));
    }
    if let (Some(cert), Some(key)) = (&options.cert, &options.key) {
        let (cert, key) = (read("--etcd-cert", cert)?, read("--etcd-key", key)?);
        tls = tls.identity(Identity::from_pem(cert, key));
    }
    Ok(tls)
}

/// A connection to one member.
pub(super) struct Connection {
    kv: KvClient,
    watch: WatchClient,
    /// Keeps the connection.
    _client: Client,
}

impl Connection {
    /// What the store says of itself, by a linearizable read of one key.
    pub(super) async fn header(&mut self, prefix: &str) -> Result<Header, Failure> {
        let options = GetOptions::new().with_prefix().with_limit(1).with_keys_only();
        let answer = timeout(REQUEST_TIMEOUT, self.kv.get(prefix, Some(options)))
            .await
            .map_err(|_| no_answer())??;
        answer
            .header()
            .map(Header::from)
            .ok_or_else(|| Failure::away("etcd answered without a header"))
    }

    /// Everything under a prefix, page by page.
    pub(super) fn pages(&mut self, prefix: &str) -> Pages<'_> {
        Pages {
            kv: &mut self.kv,
            from: Some(prefix.as_bytes().to_owned()),
            end: range_end(prefix),
            limit: PAGE,
        }
    }

    /// Begins watches, each of a prefix, with a number and a first revision, on one stream.
    pub(super) async fn watch<'a>(
        &mut self,
        watches: impl Iterator<Item = (&'a str, i64, i64)>,
    ) -> Result<WatchStream, Failure> {
        let mut stream: Option<WatchStream> = None;
        for (prefix, id, revision) in watches {
            let options = WatchOptions::new()
                .with_prefix()
                .with_watch_id(id)
                .with_start_revision(revision)
                .with_progress_notify()
                .with_fragment();
            match &mut stream {
                Some(stream) => stream.watch(prefix, Some(options)).await?,
                None => stream = Some(self.watch.watch(prefix, Some(options)).await?),
            }
        }
        stream.ok_or_else(|| Failure::away("there is nothing to watch"))
    }
}

/// A page: keys and values.
type Page = Vec<(Vec<u8>, Vec<u8>)>;

/// The rest of a range.
pub(super) struct Pages<'a> {
    kv: &'a mut KvClient,
    /// Where the next page begins; `None` at the end.
    from: Option<Vec<u8>>,
    end: Vec<u8>,
    limit: i64,
}

impl Pages<'_> {
    /// The next page as of that revision (the newest if `None`), or `None` at the end.
    pub(super) async fn next(
        &mut self,
        revision: Option<i64>,
    ) -> Result<Option<(Header, Page)>, Failure> {
        let Some(from) = self.from.clone() else { return Ok(None) };
        let mut answer = loop {
            let options = GetOptions::new()
                .with_range(self.end.clone())
                .with_limit(self.limit)
                .with_revision(revision.unwrap_or(0));
            let answer = timeout(REQUEST_TIMEOUT, self.kv.get(from.clone(), Some(options)))
                .await
                .map_err(|_| no_answer())?;
            match answer {
                Err(error) if is_too_large(&error) && self.limit > 1 => self.limit /= 2,
                answer => break answer?,
            }
        };
        let header = answer
            .header()
            .map(Header::from)
            .ok_or_else(|| Failure::away("etcd answered without a header"))?;
        let more = answer.more();
        let page: Page =
            answer.take_kvs().into_iter().map(etcd_client::KeyValue::into_key_value).collect();
        self.from = page.last().filter(|_| more).map(|(key, _)| {
            // The first key after the last.
            let mut next = key.clone();
            next.push(0);
            next
        });
        Ok(Some((header, page)))
    }
}

/// The first key after all that begin with the prefix. Prefixes are not empty and end in `/`, so that
/// the last byte can always be counted up.
fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_owned();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}
