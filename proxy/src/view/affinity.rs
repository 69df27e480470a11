//! Rows of clients and the backends that they keep.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use sluice_abi::{Affinity, AffinityKey};
use sluice_plan::Tables;

use super::Row;
use super::rows::{service_label, socket};

/// One client of a Service port with session affinity.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AffinityRow {
    /// The Service port.
    pub service: String,
    /// The client: an address; or, of sockets of this node, `node`, or `netns` and the cookie of the
    /// pod's network namespace.
    pub client: String,
    /// The backend that it gets, with its address.
    pub backend: Option<SocketAddr>,
    /// Number of the backend in the kernel.
    pub number: u32,
    /// Seconds since its last connection.
    pub idle_secs: u64,
    /// Seconds until it is forgotten, without another connection; 0 where it is already, or where
    /// the Service has no affinity any more.
    pub left_secs: u64,
}

impl AffinityRow {
    /// A row a client and family, by Service. `node` is the cookie of the node's network namespace,
    /// `now` the kernel's monotonic clock in nanoseconds.
    pub fn all(
        entries: &[(AffinityKey, Affinity)],
        tables: &Tables,
        node: u64,
        now: u64,
    ) -> Vec<Self> {
        let mut rows: Vec<Self> = entries
            .iter()
            .map(|(key, entry)| {
                let backend = tables.backends.get(&entry.backend);
                let holds = tables.frontends.values().find(|f| f.service == key.service);
                let timeout = holds.map_or(0, |frontend| u64::from(frontend.affinity_secs));
                let idle = now.saturating_sub(entry.last_used) / 1_000_000_000;
                Self {
                    service: service_label(tables, key.service),
                    client: client(key, node),
                    backend: backend.map(|backend| socket(backend.addr, backend.port)),
                    number: entry.backend,
                    idle_secs: idle,
                    left_secs: timeout.saturating_sub(idle),
                }
            })
            .collect();
        rows.sort();
        rows
    }
}

fn client(key: &AffinityKey, node: u64) -> String {
    if key.flags & AffinityKey::COOKIE == 0 {
        return key.client.to_ip().to_string();
    }
    let [low, high, ..] = key.client.0;
    match u64::from(high) << 32 | u64::from(low) {
        cookie if cookie == node => "node".to_owned(),
        cookie => format!("netns {cookie}"),
    }
}

impl Row for AffinityRow {
    fn header(wide: bool) -> Vec<&'static str> {
        let mut header = vec!["SERVICE", "CLIENT", "BACKEND", "IDLE", "LEFT"];
        if wide {
            header.push("NUMBER");
        }
        header
    }

    fn cells(&self, wide: bool) -> Vec<String> {
        let mut cells = vec![
            self.service.clone(),
            self.client.clone(),
            self.backend.map_or_else(|| "gone".to_owned(), |backend| backend.to_string()),
            format!("{}s", self.idle_secs),
            format!("{}s", self.left_secs),
        ];
        if wide {
            cells.push(self.number.to_string());
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use sluice_abi::{Addr, Backend, Be16, Frontend, FrontendKey, ServiceName, proto};

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<std::net::IpAddr>().expect("an address").into()
    }

    /// S8: who keeps which backend, for how long.
    #[test]
    fn rows_say_who_keeps_what_for_how_long() {
        let mut tables = Tables::default();
        let key = FrontendKey { proto: proto::TCP, ..FrontendKey::default() };
        let frontend = Frontend { service: 3, affinity_secs: 60, ..Frontend::default() };
        tables.frontends.insert(key, frontend);
        tables.names.insert(3, ServiceName::new("shop", "web", "http"));
        let backend =
            Backend { addr: addr("10.244.1.9"), port: Be16::new(80), proto: proto::TCP, flags: 0 };
        tables.backends.insert(9, backend);
        let used = |secs: u64, backend| Affinity {
            last_used: (1_000 - secs) * 1_000_000_000,
            backend,
            list: 1,
        };
        let address = AffinityKey { client: addr("192.0.2.1"), service: 3, flags: 0 };
        let entries = [
            (address, used(61, 9)),
            (AffinityKey::of_namespace(7, 3), used(20, 9)),
            (AffinityKey::of_namespace((1 << 32) + 2, 3), used(0, 8)),
        ];
        let rows = AffinityRow::all(&entries, &tables, 7, 1_000 * 1_000_000_000);
        let cells: Vec<String> = rows.iter().map(|row| row.cells(true).join(" ")).collect();
        assert_eq!(
            cells,
            [
                "shop/web:http 192.0.2.1 10.244.1.9:80 61s 0s 9",
                "shop/web:http netns 4294967298 gone 0s 60s 8",
                "shop/web:http node 10.244.1.9:80 20s 40s 9",
            ]
        );
    }
}
