//! Counters that the programs keep, one `u64` each and CPU.

/// Index into the counters map. The names are those of the metrics.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u32)]
pub enum Counter {
    /// A connect to a service was sent to a backend.
    SockConnect = 0,
    /// A datagram of an unconnected socket was sent to a backend.
    SockSendmsg = 1,
    /// A connect or datagram to a service without backends, or to a port that a ClusterIP does not
    /// have, was refused.
    SockRejected = 2,
    /// A frontend named a backend list or a backend that was not there, after a second look.
    BackendMissing = 3,
    /// A flow began to be translated packet by packet.
    FlowCreated = 4,
    /// A packet to a service was translated.
    PacketForward = 5,
    /// A packet from a backend was translated back.
    PacketReverse = 6,
    /// A packet to a service without backends was dropped.
    DropNoBackend = 7,
    /// A packet could not be rewritten and was dropped.
    DropRewrite = 8,
    /// The connection tracking map refused an entry; the packet was dropped.
    DropConntrackFull = 9,
    /// A packet was handed to a pod of this node without crossing the host's stack.
    FastPathPod = 10,
    /// A flow would have had the addresses and ports of another flow at its backend; the packet was
    /// dropped.
    DropFlowClash = 11,
    /// A socket was connected to a service, but there was no room to remember which: it will name
    /// the backend as its peer.
    SockPeerLost = 12,
    /// A packet to a service without backends, or to a port that a ClusterIP does not have, was
    /// answered with a TCP reset or an ICMP error.
    PacketReject = 13,
    /// A client outside `loadBalancerSourceRanges` was dropped.
    DropSourceRange = 14,
    /// A packet to a service with `externalTrafficPolicy: Local` and no backend on this node was
    /// dropped.
    DropNoLocal = 15,
    /// A flow got a port of the node for its source.
    SnatCreated = 16,
    /// A port was in use by a flow or a socket, and another was tried.
    SnatRetry = 17,
    /// No port was free for a flow; the packet was dropped.
    DropSnatExhausted = 18,
    /// A packet from outside was sent on to a backend.
    UplinkForward = 19,
    /// A packet to a client outside was translated back.
    UplinkReverse = 20,
    /// A packet left by an uplink without crossing the host's stack.
    FastPathUplink = 21,
    /// A packet that was translated had no route; it was dropped.
    DropNoRoute = 22,
    /// A fragment came before the first one of its datagram, or long after; it was dropped.
    FragmentUnknown = 23,
    /// An ICMP error was translated, with the header that it quotes.
    IcmpTranslated = 24,
    /// A flow of a pod that leaves the cluster got the node's address.
    Masqueraded = 25,
    /// A process was refused a port that is a NodePort.
    BindRefused = 26,
    /// A packet to a pod of this node was dropped: no policy allows it.
    DropPolicyIngress = 27,
    /// A packet from a pod of this node was dropped: no policy allows it.
    DropPolicyEgress = 28,
}

impl Counter {
    /// Elements of the map.
    pub const COUNT: u32 = 29;

    /// Every counter with the name it has in metrics and tables.
    pub const ALL: [(Self, &'static str); Self::COUNT as usize] = [
        (Self::SockConnect, "sock_connect"),
        (Self::SockSendmsg, "sock_sendmsg"),
        (Self::SockRejected, "sock_rejected"),
        (Self::BackendMissing, "backend_missing"),
        (Self::FlowCreated, "flow_created"),
        (Self::PacketForward, "packet_forward"),
        (Self::PacketReverse, "packet_reverse"),
        (Self::DropNoBackend, "drop_no_backend"),
        (Self::DropRewrite, "drop_rewrite"),
        (Self::DropConntrackFull, "drop_conntrack_full"),
        (Self::FastPathPod, "fast_path_pod"),
        (Self::DropFlowClash, "drop_flow_clash"),
        (Self::SockPeerLost, "sock_peer_lost"),
        (Self::PacketReject, "packet_reject"),
        (Self::DropSourceRange, "drop_source_range"),
        (Self::DropNoLocal, "drop_no_local"),
        (Self::SnatCreated, "snat_created"),
        (Self::SnatRetry, "snat_retry"),
        (Self::DropSnatExhausted, "drop_snat_exhausted"),
        (Self::UplinkForward, "uplink_forward"),
        (Self::UplinkReverse, "uplink_reverse"),
        (Self::FastPathUplink, "fast_path_uplink"),
        (Self::DropNoRoute, "drop_no_route"),
        (Self::FragmentUnknown, "fragment_unknown"),
        (Self::IcmpTranslated, "icmp_translated"),
        (Self::Masqueraded, "masqueraded"),
        (Self::BindRefused, "bind_refused"),
        (Self::DropPolicyIngress, "drop_policy_ingress"),
        (Self::DropPolicyEgress, "drop_policy_egress"),
    ];
}
