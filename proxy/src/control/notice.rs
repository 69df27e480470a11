//! What a monitor is told, a line each.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sluice_abi::{Be16, DropEvent};

/// What a monitor is told: `{"dropped":{...}}` or `{"lost":12}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Notice {
    /// Policies did not let a packet pass.
    Dropped(DroppedPacket),
    /// So many more were dropped than the monitor could take.
    Lost(u64),
}

/// A [`DropEvent`], field by field.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DroppedPacket {
    /// See [`DropEvent::time`].
    pub time: u64,
    /// See [`DropEvent::src`].
    pub src: IpAddr,
    /// See [`DropEvent::dst`].
    pub dst: IpAddr,
    /// See [`DropEvent::ifindex`].
    pub ifindex: u32,
    /// See [`DropEvent::set`].
    pub set: u32,
    /// See [`DropEvent::identity`].
    pub identity: u32,
    /// See [`DropEvent::len`].
    pub len: u32,
    /// See [`DropEvent::sport`].
    pub sport: u16,
    /// See [`DropEvent::dport`].
    pub dport: u16,
    /// See [`DropEvent::proto`].
    pub proto: u8,
    /// See [`DropEvent::direction`].
    pub direction: u8,
    /// See [`DropEvent::reason`].
    pub reason: u8,
    /// See [`DropEvent::answer`].
    pub answer: u8,
}

impl From<&DropEvent> for DroppedPacket {
    fn from(event: &DropEvent) -> Self {
        Self {
            time: event.time,
            src: event.src.to_ip(),
            dst: event.dst.to_ip(),
            ifindex: event.ifindex,
            set: event.set,
            identity: event.identity,
            len: event.len,
            sport: event.sport.get(),
            dport: event.dport.get(),
            proto: event.proto,
            direction: event.direction,
            reason: event.reason,
            answer: event.answer,
        }
    }
}

impl From<&DroppedPacket> for DropEvent {
    fn from(packet: &DroppedPacket) -> Self {
        Self {
            time: packet.time,
            src: packet.src.into(),
            dst: packet.dst.into(),
            ifindex: packet.ifindex,
            set: packet.set,
            identity: packet.identity,
            len: packet.len,
            sport: Be16::new(packet.sport),
            dport: Be16::new(packet.dport),
            proto: packet.proto,
            direction: packet.direction,
            reason: packet.reason,
            answer: packet.answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_on_the_way() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let event = DropEvent {
            time: 1,
            src: ip("10.244.1.2").into(),
            dst: ip("fd00::2").into(),
            ifindex: 2,
            set: 3,
            identity: 4,
            len: 5,
            sport: Be16::new(6),
            dport: Be16::new(7),
            proto: 8,
            direction: 1,
            reason: 2,
            answer: 1,
        };
        let line = serde_json::to_string(&Notice::Dropped((&event).into())).expect("plain data");
        let Ok(Notice::Dropped(packet)) = serde_json::from_str(&line) else { panic!("{line}") };
        assert_eq!(DropEvent::from(&packet), event);
        let lost = serde_json::to_string(&Notice::Lost(12)).expect("plain data");
        assert_eq!(lost, r#"{"lost":12}"#);
    }
}
