//! A small synchronous route-netlink client, of the CNI plugin and of the agent's short questions.
//!
//! There is no runtime and no task: a plugin lives for a few milliseconds, and the agent's loop waits
//! for the answer anyway. Requests that depend on each other only by order go to the kernel in one
//! write, and their acknowledgements are read back one after the other.

use std::io;

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, Nla as _, NlasIterator, Parseable as _,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

/// `NLMSGERR_ATTR_MSG`: the kernel's own words on an error.
const ERROR_TEXT: u16 = 1;
/// Length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// How often a dump is repeated that the kernel says was disturbed.
const DUMP_ATTEMPTS: usize = 5;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused it.
    #[error("{errno}{}{text}", if .text.is_empty() { "" } else { ": " })]
    Refused {
        /// The errno.
        errno: Errno,
        /// The kernel's explanation (extended acknowledgement), often empty.
        text: String,
    },
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// The kernel's answer could not be understood.
    #[error("netlink answer: {0}")]
    Answer(String),
}

impl NetlinkError {
    /// Whether the kernel answered with this errno.
    pub fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Refused { errno: e, .. } if *e == errno)
    }

    /// Whether a capability is missing.
    pub fn is_permission(&self) -> bool {
        self.is(Errno::EPERM) || self.is(Errno::EACCES)
    }
}

/// One change, and what to call it in an error.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it does, naming the object.
    pub what: String,
    /// `NLM_F_CREATE`, `NLM_F_EXCL`, `NLM_F_REPLACE`.
    pub flags: u16,
    /// The message.
    pub message: RouteNetlinkMessage,
}

/// A connection to the route netlink of one network namespace: that of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Both only improve errors; a kernel without them still works.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends all requests in one write and waits for all answers. The kernel tries every one; the
    /// first that failed is returned with its place in `requests`.
    pub fn run(&mut self, requests: &[Request]) -> Result<(), (usize, NetlinkError)> {
        if requests.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(1024);
        let first = self.sequence.wrapping_add(1);
        for request in requests {
            let flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
            self.append(&mut bytes, request.message.clone(), flags);
        }
        self.socket.send(&bytes, 0).map_err(|e| (0, e.into()))?;
        let mut failed: Option<(usize, NetlinkError)> = None;
        let mut left = requests.len();
        let mut buffer = Vec::with_capacity(16 * 1024);
        while left > 0 {
            for message in self.receive(&mut buffer).map_err(|e| (0, e))? {
                // Answers to an earlier, abandoned batch fall outside.
                let place = message.header.sequence_number.wrapping_sub(first) as usize;
                let NetlinkPayload::Error(error) = message.payload else { continue };
                if place >= requests.len() {
                    continue;
                }
                left -= 1;
                if let Some(code) = error.code
                    && failed.as_ref().is_none_or(|(p, _)| place < *p)
                {
                    failed = Some((place, refused(code.get(), &error.header)));
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// One object by its key, for example a link by its name.
    pub fn get(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, NetlinkError> {
        self.ask(message, NLM_F_REQUEST)?
            .into_iter()
            .next()
            .ok_or_else(|| NetlinkError::Answer("no object in it".into()))
    }

    /// All objects of a kind; filtering in the message is up to the kernel and may be ignored.
    pub fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        for _ in 1..DUMP_ATTEMPTS {
            match self.ask(message.clone(), NLM_F_REQUEST | NLM_F_DUMP) {
                Err(e) if e.is(Errno::EINTR) => {}
                other => return other,
            }
        }
        self.ask(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut bytes = Vec::with_capacity(256);
        self.append(&mut bytes, message, flags);
        self.socket.send(&bytes, 0)?;
        let mut objects = Vec::new();
        let mut disturbed = false;
        // A dump fills up to 32 KiB a read.
        let mut buffer = Vec::with_capacity(64 * 1024);
        loop {
            for message in self.receive(&mut buffer)? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                disturbed |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(object) => {
                        objects.push(object);
                        if !dump {
                            return Ok(objects);
                        }
                    }
                    NetlinkPayload::Done(_) if disturbed => {
                        return Err(NetlinkError::Refused {
                            errno: Errno::EINTR,
                            text: "the dump was disturbed by changes".into(),
                        });
                    }
                    NetlinkPayload::Done(_) => return Ok(objects),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            Some(code) => Err(refused(code.get(), &error.header)),
                            None => Ok(objects),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..start + message.buffer_len()]);
    }

    fn receive(
        &self,
        buffer: &mut Vec<u8>,
    ) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, NetlinkError> {
        buffer.clear();
        loop {
            match self.socket.recv(buffer, 0) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map(|_| ())?,
            }
        }
        messages(buffer).collect()
    }
}

/// The messages of one datagram. It ends with an error where one cannot be read: where the next begins
/// is not known then.
pub fn messages(
    mut bytes: &[u8],
) -> impl Iterator<Item = Result<NetlinkMessage<RouteNetlinkMessage>, NetlinkError>> {
    std::iter::from_fn(move || {
        if bytes.len() < HEADER_LEN {
            return None;
        }
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
            .map_err(|e| NetlinkError::Answer(e.to_string()));
        bytes = match &message {
            Ok(message) => {
                let length = (message.header.length as usize).max(HEADER_LEN).next_multiple_of(4);
                bytes.get(length..).unwrap_or_default()
            }
            Err(_) => &[],
        };
        Some(message)
    })
}

/// `header` is what follows the errno: the request's header, then attributes (`NLMSGERR_ATTR_*`).
fn refused(code: i32, header: &[u8]) -> NetlinkError {
    let attributes = header.get(HEADER_LEN..).unwrap_or_default();
    let text = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .filter_map(|nla| DefaultNla::parse(&nla).ok())
        .find(|nla| nla.kind() == ERROR_TEXT)
        .map(|nla| {
            let mut value = vec![0; nla.value_len()];
            nla.emit_value(&mut value);
            String::from_utf8_lossy(&value).trim_end_matches('\0').to_owned()
        })
        .unwrap_or_default();
    NetlinkError::Refused { errno: Errno::from_raw(code.wrapping_neg()), text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_read_up_to_what_cannot_be_read() {
        let mut bytes = vec![0xff; 32];
        bytes[..4].copy_from_slice(&32_u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&16_u16.to_ne_bytes());
        assert!(messages(&[]).next().is_none());
        assert!(messages(&bytes[..HEADER_LEN - 1]).next().is_none(), "no header");
        assert!(messages(&bytes[..20]).next().is_some_and(|it| it.is_err()), "cut short");
        // NLMSG_NOOP, twice, then half a message.
        let noop = [16_u32.to_ne_bytes(), [1, 0, 0, 0], [0; 4], [0; 4]].concat();
        let all = [noop.clone(), noop, bytes[..20].to_vec()].concat();
        let read: Vec<bool> = messages(&all).map(|it| it.is_ok()).collect();
        assert_eq!(read, [true, true, false]);
    }

    #[test]
    fn the_loopback_is_found_and_what_is_not_there_is_refused() {
        let mut netlink = Netlink::open().expect("netlink");
        let ask = |name: &str| {
            let mut link = netlink_packet_route::link::LinkMessage::default();
            let name = netlink_packet_route::link::LinkAttribute::IfName(name.to_owned());
            link.attributes.push(name);
            RouteNetlinkMessage::GetLink(link)
        };
        let found = netlink.get(ask("lo")).expect("an answer");
        assert!(matches!(found, RouteNetlinkMessage::NewLink(link) if link.header.index == 1));
        let missing = netlink.get(ask("no-such-link")).expect_err("there is none");
        assert!(missing.is(Errno::ENODEV), "{missing}");
    }
}
