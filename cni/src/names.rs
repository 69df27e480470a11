//! Names and addresses that follow from what an attachment is called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What identifies an attachment: the specification's (network, container, interface).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Key {
    /// `name` of the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub interface: String,
}

/// First bytes of every host-side interface's name.
pub const HOST_INTERFACE_PREFIX: &str = "slu";

impl Key {
    /// Name of the node's end of the veth pair: `slu` and eleven hexadecimal digits.
    ///
    /// It depends on the key alone, so DEL finds the interface without a record.
    pub fn host_interface(&self) -> String {
        format!("{HOST_INTERFACE_PREFIX}{:011x}", self.hash("interface") >> 20)
    }

    /// MAC address of the pod's end.
    pub fn pod_mac(&self) -> Mac {
        Mac::from_hash(self.hash("pod mac"))
    }

    /// MAC address of the node's end.
    pub fn host_mac(&self) -> Mac {
        Mac::from_hash(self.hash("host mac"))
    }

    /// A hash that no release may change, since names on the node follow from it: 64-bit FNV-1a
    /// over the zero-terminated parts, then the finalizer of MurmurHash3.
    fn hash(&self, salt: &str) -> u64 {
        let mut h: u64 = 0xcbf2_9ce4_8422_2325;
        for part in [salt, &self.network, &self.container_id, &self.interface] {
            for byte in part.bytes().chain([0]) {
                h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        h ^ (h >> 33)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of container {} in network {}",
            self.interface, self.container_id, self.network
        )
    }
}

/// An Ethernet address; JSON and text form `02:00:00:00:00:00`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Locally administered and unicast, the rest from the hash.
    fn from_hash(hash: u64) -> Self {
        let [_, _, first, rest @ ..] = hash.to_be_bytes();
        let [b, c, d, e, f] = rest;
        Self([(first & 0xfc) | 0x02, b, c, d, e, f])
    }
}

impl Mac {
    /// Whether one interface can have it: not all zero, and no group address.
    pub fn is_usable(self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Text that is no MAC address.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no MAC address of the form 02:00:00:00:00:00")]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(s: &str) -> Result<Self, MacError> {
        let error = || MacError(s.to_owned());
        let mut bytes = [0; 6];
        let mut parts = s.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(bytes)) }
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(container_id: &str) -> Key {
        Key { network: "pods".into(), container_id: container_id.into(), interface: "eth0".into() }
    }

    /// A changed hash would orphan the interfaces of running pods at an upgrade.
    #[test]
    fn names_are_the_same_in_every_release() {
        let key = key("c1");
        assert_eq!(key.host_interface(), "sluf06ab9d8b1a");
        assert_eq!(key.pod_mac().to_string(), "92:27:c3:00:2a:60");
    }

    #[test]
    fn names_fit_the_kernel_and_differ() {
        let names: std::collections::BTreeSet<_> =
            (0..10_000).map(|i| key(&i.to_string()).host_interface()).collect();
        assert_eq!(names.len(), 10_000);
        assert!(names.iter().all(|n| n.len() == 14 && n.starts_with(HOST_INTERFACE_PREFIX)));
    }

    #[test]
    fn macs_are_local_unicast_and_differ_between_ends() {
        for i in 0..1000 {
            let key = key(&i.to_string());
            for mac in [key.pod_mac(), key.host_mac()] {
                assert_eq!(mac.0[0] & 3, 2);
                assert_eq!(mac.to_string().parse::<Mac>().expect("own text form"), mac);
            }
            assert_ne!(key.pod_mac(), key.host_mac());
        }
        for bad in ["", "02:00", "02:00:00:00:00:0g", "02:00:00:00:00:00:00", "2:0:0:0:0:0"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
