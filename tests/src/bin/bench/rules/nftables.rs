//! The nftables mode: verdict maps that a new connection looks its service up in.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::{Family, Service};

/// The base chains and helpers, which no service changes.
const BASE: &str = r#"
	chain filter-prerouting-pre-dnat {
		type filter hook prerouting priority dstnat - 10; policy accept;
		ct state new jump firewall-check
	}
	chain filter-output-pre-dnat {
		type filter hook output priority -110; policy accept;
		ct state new jump firewall-check
	}
	chain filter-input {
		type filter hook input priority filter; policy accept;
		ct state new jump nodeport-endpoints-check
		ct state new jump service-endpoints-check
	}
	chain filter-forward {
		type filter hook forward priority filter; policy accept;
		ct state new jump service-endpoints-check
		ct state new jump cluster-ips-check
	}
	chain filter-output {
		type filter hook output priority filter; policy accept;
		ct state new jump service-endpoints-check
		ct state new jump cluster-ips-check
	}
	chain nat-prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		jump services
	}
	chain nat-output {
		type nat hook output priority -100; policy accept;
		jump services
	}
	chain nat-postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		jump masquerading
	}
	chain nodeport-endpoints-check {
		ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
	}
	chain service-endpoints-check {
		ip daddr . meta l4proto . th dport vmap @no-endpoint-services
	}
	chain firewall-check {
		ip daddr . meta l4proto . th dport vmap @firewall-ips
	}
	chain services {
		ip daddr . meta l4proto . th dport vmap @service-ips
		ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
	}
	chain masquerading {
		meta mark & 0x00004000 == 0x00000000 return
		meta mark set meta mark ^ 0x00004000
		masquerade fully-random
	}
"#;

/// Helpers that the services' chains jump to.
const HELPERS: &str = r#"
	chain mark-for-masquerade {
		meta mark set meta mark | 0x00004000
	}
	chain reject-chain {
		reject
	}
"#;

/// Services in one transaction: the kernel's time for one grows with the square of the chains in it.
const CHUNK: usize = 200;

/// Inputs for `nft -f`, to be loaded in order, for a node with the address `node`. Together they are one table.
pub(crate) fn nftables(family: Family, services: &[Service], node: IpAddr) -> Vec<String> {
    let ip = keyword(family);
    let table = |body: &str| format!("table {ip} kube-proxy {{\n{body}}}\n");
    let served = || services.iter().filter(|it| !it.endpoints.is_empty());
    let mut inputs = vec![table(&format!("\tcomment \"rules for kube-proxy\"\n{HELPERS}"))];
    for chunk in served().collect::<Vec<_>>().chunks(CHUNK) {
        let mut chains = String::new();
        for service in chunk {
            chains_of(&mut chains, family, service);
        }
        inputs.push(table(&chains));
    }
    // The maps name the chains above; the base chains come last, so that the kernel follows all jumps only once.
    let mut out = String::new();
    let mut addresses: Vec<String> = services.iter().map(|it| it.address.to_string()).collect();
    addresses.dedup();
    let address = match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    collection(&mut out, "set", "cluster-ips", address, addresses);
    collection(&mut out, "set", "nodeport-ips", address, [node.to_string()]);
    let triple = format!("{address} . inet_proto . inet_service : verdict");
    let pair = "inet_proto . inet_service : verdict";
    let at = |it: &Service| format!("{} . {} . {}", it.address, it.protocol, it.port);
    let empty = services.iter().filter(|it| it.endpoints.is_empty());
    let empty = empty.map(|it| format!("{} : goto reject-chain", at(it)));
    collection(&mut out, "map", "no-endpoint-services", &triple, empty);
    collection(&mut out, "map", "no-endpoint-nodeports", pair, []);
    collection(&mut out, "map", "firewall-ips", &triple, []);
    let ips = served().map(|it| format!("{} : goto {}", at(it), chain("service", it)));
    collection(&mut out, "map", "service-ips", &triple, ips);
    let node_ports = served().filter_map(|it| {
        it.node_port
            .map(|port| format!("{} . {port} : goto {}", it.protocol, chain("external", it)))
    });
    collection(&mut out, "map", "service-nodeports", pair, node_ports);
    out.push_str(&BASE.replace("ip daddr", &format!("{ip} daddr")));
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "\tchain cluster-ips-check {{\n\t\t{ip} daddr @cluster-ips reject\n\t\t{ip} daddr {} drop\n\t}}",
        family.service_cidr()
    );
    inputs.push(table(&out));
    inputs
}

/// The word for the family in tables and matches.
fn keyword(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn collection(
    out: &mut String,
    kind: &str,
    name: &str,
    of: &str,
    elements: impl IntoIterator<Item = String>,
) {
    let elements: Vec<String> = elements.into_iter().collect();
    let _ = writeln!(out, "\t{kind} {name} {{\n\t\ttype {of}");
    if !elements.is_empty() {
        let _ = writeln!(out, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t"));
    }
    out.push_str("\t}\n");
}

fn chain(kind: &str, service: &Service) -> String {
    let Service { name, protocol, .. } = service;
    format!("{kind}-{}-default/{name}/{protocol}/p", &service.hash(0)[..8])
}

fn chains_of(out: &mut String, family: Family, service: &Service) {
    let ip = keyword(family);
    let Service { name, protocol, .. } = service;
    let mut targets = Vec::new();
    for (index, (endpoint, port)) in service.endpoints.iter().enumerate() {
        let hash = &service.hash(index + 1)[..8];
        let (shown, at) = match family {
            Family::V4 => (endpoint.to_string(), format!("{endpoint}:{port}")),
            // A chain's name has no colon.
            Family::V6 => (endpoint.to_string().replace(':', "."), format!("[{endpoint}]:{port}")),
        };
        let chain = format!("endpoint-{hash}-default/{name}/{protocol}/p__{shown}/{port}");
        let _ = writeln!(
            out,
            "\tchain {chain} {{\n\t\t{ip} saddr {endpoint} jump mark-for-masquerade\n\t\tmeta l4proto {protocol} dnat to \
             {at}\n\t}}"
        );
        targets.push(format!("{index} : goto {chain}"));
    }
    let own = chain("service", service);
    let _ = writeln!(
        out,
        "\tchain {own} {{\n\t\t{ip} daddr {} {ip} saddr != {} jump mark-for-masquerade\n\t\tnumgen random mod \
         {} vmap {{ {} }}\n\t}}",
        service.address,
        family.cluster_cidr(),
        targets.len(),
        targets.join(", ")
    );
    if service.node_port.is_some() {
        let external = chain("external", service);
        let _ = writeln!(
            out,
            "\tchain {external} {{\n\t\tjump mark-for-masquerade\n\t\tgoto {own}\n\t}}"
        );
    }
}
