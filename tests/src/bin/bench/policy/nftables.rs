//! Policies as sets of nftables: what agents write that enforce them there.
//!
//! A packet of a connection that was allowed passes by its state alone. Another one is looked up by the address of its pod,
//! by which a chain of the pod's own is found; what none of its sets has is dropped. The chain of who sends returns where
//! it allows, so that the one of who receives is asked, too.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::rules::Family;
use crate::topology::{POD_PORT, PORT, plain_client, plain_server};

/// One table for both families, in which each of the two pods may have to do with the other and `peers - 1` strangers.
pub(super) fn table(peers: usize) -> String {
    let mut sets = String::new();
    let (mut egress, mut ingress) = (String::new(), String::new());
    for family in Family::ALL {
        let (kind, ip, version) = match family {
            Family::V4 => ("ipv4_addr", "ip", 4),
            Family::V6 => ("ipv6_addr", "ip6", 6),
        };
        let (client, server) = (plain_client(family), plain_server(family));
        for (name, peer) in [("client-egress", server), ("server-ingress", client)] {
            let elements: Vec<String> = (1..peers)
                .map(|number| stranger(family, number))
                .chain([peer])
                .flat_map(|address| {
                    [PORT, POD_PORT].map(|port| format!("{address} . tcp . {port}"))
                })
                .collect();
            // Writing to a String cannot fail.
            let _ = writeln!(
                sets,
                "\tset {name}-{version} {{ type {kind} . inet_proto . inet_service; elements = {{ {} }} }}",
                elements.join(", ")
            );
        }
        for (name, pod, chain) in
            [("egress", client, "client-egress"), ("ingress", server, "server-ingress")]
        {
            let _ = writeln!(
                sets,
                "\tmap {name}-pods-{version} {{ type {kind} : verdict; elements = {{ {pod} : jump {chain} }} }}"
            );
        }
        let _ = writeln!(
            egress,
            "\t\t{ip} daddr . meta l4proto . th dport @client-egress-{version} return"
        );
        let _ = writeln!(
            ingress,
            "\t\t{ip} saddr . meta l4proto . th dport @server-ingress-{version} return"
        );
    }
    format!(
        "table inet policies {{
\tchain client-egress {{\n{egress}\t\tdrop\n\t}}
\tchain server-ingress {{\n{ingress}\t\tdrop\n\t}}
{sets}
\tchain forward {{
\t\ttype filter hook forward priority filter - 5; policy accept;
\t\tct state established,related accept
\t\tip saddr vmap @egress-pods-4
\t\tip6 saddr vmap @egress-pods-6
\t\tip daddr vmap @ingress-pods-4
\t\tip6 daddr vmap @ingress-pods-6
\t}}
}}
"
    )
}

/// An address that nobody has.
fn stranger(family: Family, number: usize) -> IpAddr {
    let number = u16::try_from(number).unwrap_or(u16::MAX);
    match family {
        Family::V4 => {
            let [high, low] = number.to_be_bytes();
            [10, 247, high, low].into()
        }
        Family::V6 => [0xfd00, 0x247, 0, 0, 0, 0, 0, number].into(),
    }
}
