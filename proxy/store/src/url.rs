//! The `--source` URL.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port etcd serves clients on where the URL names none.
const ETCD_PORT: u16 = 2379;

/// Which source, and where it is: `dir:PATH` or `etcd:URL[,URL...]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceUrl {
    /// A directory of Kubernetes manifests.
    Dir(PathBuf),
    /// The etcd of a kube-apiserver, or one that holds the same keys. Never empty.
    Etcd(Vec<EtcdEndpoint>),
}

/// One member of an etcd cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EtcdEndpoint {
    /// Whether the scheme is `https`.
    pub tls: bool,
    /// Host name or address; an IPv6 address without its brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl fmt::Display for EtcdEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// A source URL that cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlError {
    /// No kind of source has that name.
    #[error("unknown source {url:?}")]
    UnknownKind {
        /// The URL as given.
        url: String,
    },
    /// `dir:` without a path.
    #[error("source {url:?} names no directory")]
    NoPath {
        /// The URL as given.
        url: String,
    },
    /// An etcd endpoint that is not `[http[s]://]HOST[:PORT]`.
    #[error("etcd endpoint {endpoint:?}: {reason}")]
    Endpoint {
        /// The endpoint as given.
        endpoint: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl UrlError {
    /// What would be right, in one line.
    pub fn hint(&self) -> String {
        match self {
            Self::UnknownKind { url } if url.starts_with(['/', '.']) => {
                format!("for a directory of manifests write dir:{url}")
            }
            Self::UnknownKind { url } if url.starts_with("http") => {
                format!("for an etcd write etcd:{url}")
            }
            Self::UnknownKind { .. } => {
                "known sources are dir:/path/to/manifests and etcd:https://host:2379[,host:2379]"
                    .to_owned()
            }
            Self::NoPath { .. } => "write dir:/path/to/manifests".to_owned(),
            Self::Endpoint { .. } => {
                "write etcd:http://host:2379 or etcd:https://a:2379,b:2379".to_owned()
            }
        }
    }
}

impl FromStr for SourceUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        let unknown = || UrlError::UnknownKind { url: url.to_owned() };
        let (kind, rest) = url.split_once(':').ok_or_else(unknown)?;
        match kind {
            "dir" if rest.is_empty() => Err(UrlError::NoPath { url: url.to_owned() }),
            "dir" => Ok(Self::Dir(PathBuf::from(rest))),
            "etcd" => Ok(Self::Etcd(endpoints(rest)?)),
            _ => Err(unknown()),
        }
    }
}

/// `https://a:2379,b:2379`: an endpoint without a scheme has that of the one before it.
fn endpoints(list: &str) -> Result<Vec<EtcdEndpoint>, UrlError> {
    let mut tls = false;
    list.split(',')
        .map(|endpoint| {
            let bad = |reason| UrlError::Endpoint { endpoint: endpoint.to_owned(), reason };
            let text = endpoint.trim();
            let authority = match text.split_once("://") {
                Some(("https", rest)) => {
                    tls = true;
                    rest
                }
                Some(("http", rest)) => {
                    tls = false;
                    rest
                }
                Some(_) => return Err(bad("the scheme is neither http nor https")),
                None => text,
            };
            let authority = authority.strip_suffix('/').unwrap_or(authority);
            if authority.contains(['/', '?', '#', '@']) || authority.contains(char::is_whitespace) {
                return Err(bad("only a host and a port may follow the scheme"));
            }
            let (host, port) = match authority.strip_prefix('[') {
                Some(rest) => {
                    let (host, port) = rest.split_once(']').ok_or_else(|| bad("']' is missing"))?;
                    (host, port.strip_prefix(':'))
                }
                None => match authority.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (authority, None),
                },
            };
            if host.is_empty() {
                return Err(bad("the host is missing"));
            }
            let port = match port {
                Some(port) => port
                    .parse()
                    .ok()
                    .filter(|&port| port != 0)
                    .ok_or_else(|| bad("the port is not 1 to 65535"))?,
                None => ETCD_PORT,
            };
            Ok(EtcdEndpoint { tls, host: host.to_owned(), port })
        })
        .collect()
}

impl fmt::Display for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
            Self::Etcd(endpoints) => {
                f.write_str("etcd:")?;
                for (i, endpoint) in endpoints.iter().enumerate() {
                    write!(f, "{}{endpoint}", if i == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_endpoints_inherit_the_scheme_and_the_port() {
        let url: SourceUrl = "etcd:https://a:2379,b,[fd00::1]:4001,http://c/".parse().unwrap();
        assert_eq!(
            url.to_string(),
            "etcd:https://a:2379,https://b:2379,https://[fd00::1]:4001,http://c:2379"
        );
        assert_eq!(url.to_string().parse::<SourceUrl>().unwrap(), url);
    }

    #[test]
    fn a_directory_keeps_its_path() {
        let url: SourceUrl = "dir:/etc/sluice/manifests".parse().unwrap();
        assert_eq!(url, SourceUrl::Dir("/etc/sluice/manifests".into()));
        assert_eq!(url.to_string(), "dir:/etc/sluice/manifests");
    }

    #[test]
    fn what_is_no_source_is_refused_with_a_hint() {
        for (text, hint) in [
            ("/etc/sluice", "write dir:/etc/sluice"),
            ("http://a:2379", "write etcd:http://a:2379"),
            ("zookeeper:a", "known sources are dir:"),
            ("", "known sources are dir:"),
            ("dir:", "write dir:/path"),
            ("etcd:", "write etcd:http"),
            ("etcd:ftp://a", "write etcd:http"),
            ("etcd:http://a:0", "write etcd:http"),
            ("etcd:http://a:70000", "write etcd:http"),
            ("etcd:http://a:2379/path", "write etcd:http"),
            ("etcd:http://user@a:2379", "write etcd:http"),
            ("etcd:[::1", "write etcd:http"),
        ] {
            let error = text.parse::<SourceUrl>().unwrap_err();
            assert!(error.hint().contains(hint), "{text}: {} / {}", error, error.hint());
        }
    }
}
