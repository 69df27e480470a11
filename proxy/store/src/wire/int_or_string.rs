//! `intstr.IntOrString`.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// A number or a name.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct IntOrString {
    /// 0 for a number, 1 for a string.
    #[prost(int64, tag = "1")]
    pub(crate) kind: i64,
    #[prost(int32, tag = "2")]
    pub(crate) int: i32,
    #[prost(string, tag = "3")]
    pub(crate) string: String,
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl Visitor<'_> for Either {
            type Value = IntOrString;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or a name")
            }

            fn visit_i64<E: Error>(self, int: i64) -> Result<IntOrString, E> {
                let int = int
                    .try_into()
                    .map_err(|_| E::custom(format_args!("{int} does not fit into 32 bits")))?;
                Ok(IntOrString { kind: 0, int, string: String::new() })
            }

            fn visit_u64<E: Error>(self, int: u64) -> Result<IntOrString, E> {
                let int = int
                    .try_into()
                    .map_err(|_| E::custom(format_args!("{int} does not fit into 32 bits")))?;
                Ok(IntOrString { kind: 0, int, string: String::new() })
            }

            fn visit_str<E: Error>(self, string: &str) -> Result<IntOrString, E> {
                Ok(IntOrString { kind: 1, int: 0, string: string.to_owned() })
            }
        }

        deserializer.deserialize_any(Either)
    }
}
