//! The nftables mode: verdict maps that a new connection looks its service up in.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::{CLUSTER_CIDR, SERVICE_CIDR, Service};

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
pub(crate) fn nftables(services: &[Service], node: Ipv4Addr) -> Vec<String> {
    let table = |body: &str| format!("table ip kube-proxy {{\n{body}}}\n");
    let served = || services.iter().filter(|it| !it.endpoints.is_empty());
    let mut inputs = vec![table(&format!("\tcomment \"rules for kube-proxy\"\n{HELPERS}"))];
    for chunk in served().collect::<Vec<_>>().chunks(CHUNK) {
        let mut chains = String::new();
        for service in chunk {
            chains_of(&mut chains, service);
        }
        inputs.push(table(&chains));
    }
    // The maps name the chains above; the base chains come last, so that the kernel follows all jumps only once.
    let mut out = String::new();
    let addresses = services.iter().map(|it| it.address.to_string());
    collection(&mut out, "set", "cluster-ips", "ipv4_addr", addresses);
    collection(&mut out, "set", "nodeport-ips", "ipv4_addr", [node.to_string()]);
    let triple = "ipv4_addr . inet_proto . inet_service : verdict";
    let pair = "inet_proto . inet_service : verdict";
    let empty = services.iter().filter(|it| it.endpoints.is_empty());
    let empty = empty.map(|it| format!("{} . tcp . {} : goto reject-chain", it.address, it.port));
    collection(&mut out, "map", "no-endpoint-services", triple, empty);
    collection(&mut out, "map", "no-endpoint-nodeports", pair, []);
    collection(&mut out, "map", "firewall-ips", triple, []);
    let ips = served()
        .map(|it| format!("{} . tcp . {} : goto {}", it.address, it.port, chain("service", it)));
    collection(&mut out, "map", "service-ips", triple, ips);
    let node_ports = served().filter_map(|it| {
        it.node_port.map(|port| format!("tcp . {port} : goto {}", chain("external", it)))
    });
    collection(&mut out, "map", "service-nodeports", pair, node_ports);
    out.push_str(BASE);
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "\tchain cluster-ips-check {{\n\t\tip daddr @cluster-ips reject\n\t\tip daddr {SERVICE_CIDR} drop\n\t}}"
    );
    inputs.push(table(&out));
    inputs
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
    format!("{kind}-{}-default/{}/tcp/p", &service.hash(0)[..8], service.name)
}

fn chains_of(out: &mut String, service: &Service) {
    let mut targets = Vec::new();
    for (index, (endpoint, port)) in service.endpoints.iter().enumerate() {
        let hash = &service.hash(index + 1)[..8];
        let name = format!("endpoint-{hash}-default/{}/tcp/p__{endpoint}/{port}", service.name);
        let _ = writeln!(
            out,
            "\tchain {name} {{\n\t\tip saddr {endpoint} jump mark-for-masquerade\n\t\tmeta l4proto tcp dnat to \
             {endpoint}:{port}\n\t}}"
        );
        targets.push(format!("{index} : goto {name}"));
    }
    let own = chain("service", service);
    let _ = writeln!(
        out,
        "\tchain {own} {{\n\t\tip daddr {} ip saddr != {CLUSTER_CIDR} jump mark-for-masquerade\n\t\tnumgen random mod \
         {} vmap {{ {} }}\n\t}}",
        service.address,
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
