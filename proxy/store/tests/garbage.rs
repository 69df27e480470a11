//! O9: whatever a store holds, decoding it ends in an object or an error, never in a panic.

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use sluice_store::{decode_value, parse_manifest};

/// Real values, protobuf and JSON.
fn samples() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/etcd");
    let files = fs::read_dir(directory).expect("testdata is part of the source");
    files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

proptest! {
    #[test]
    fn garbage_is_an_error(bytes in vec(any::<u8>(), 0..256)) {
        prop_assert!(decode_value(&bytes).is_err());
        let enveloped = [b"k8s\0".as_slice(), &bytes].concat();
        let _ = decode_value(&enveloped);
        let json = [b"{".as_slice(), &bytes].concat();
        prop_assert!(decode_value(&json).is_err());
        let text = String::from_utf8_lossy(&bytes);
        let _ = parse_manifest("f.yaml", &text);
        let _ = parse_manifest("f.json", &text);
    }

    #[test]
    fn damaged_values_do_not_panic(
        sample in select(samples()),
        damage in vec((any::<Index>(), any::<u8>()), 1..8),
        end in any::<Index>(),
    ) {
        let mut bytes = sample;
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = decode_value(&bytes);
        bytes.truncate(end.index(bytes.len()));
        let _ = decode_value(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = parse_manifest("f.json", &text);
        let _ = parse_manifest("f.yaml", &text);
    }

    /// Trees in the form of objects, with values of any type in any place.
    #[test]
    fn objects_of_the_wrong_shape_do_not_panic(
        kind in select(vec![
            ("v1", "Service"), ("v1", "Pod"), ("v1", "Node"), ("v1", "Namespace"),
            ("discovery.k8s.io/v1", "EndpointSlice"), ("networking.k8s.io/v1", "NetworkPolicy"), ("v1", "List"), ("v1", "ServiceList"),
        ]),
        field in select(vec!["metadata", "spec", "status", "endpoints", "ports", "items"]),
        value in select(vec!["7", "-1", "1e99", "\"x\"", "[]", "{}", "[7]", "[{}]", "null", "true",
            "{\"ports\":[{\"port\":1e9}]}", "{\"name\":7}", "[[[]]]"]),
    ) {
        let (version, kind) = kind;
        let text = format!(
            r#"{{"apiVersion":"{version}","kind":"{kind}","metadata":{{"name":"x"}},"{field}":{value}}}"#
        );
        let _ = decode_value(text.as_bytes());
        let _ = parse_manifest("f.json", &text);
        let _ = parse_manifest("f.yaml", &text);
    }
}

/// Aliases that unfold without end are cut off.
#[test]
fn a_yaml_bomb_is_refused() {
    let mut text = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..12 {
        let list = vec![format!("*a{}", i - 1); 10].join(", ");
        text += &format!("b{i}: &a{i} [{list}]\n");
    }
    let manifest = parse_manifest("f.yaml", &text);
    assert_eq!((manifest.objects.len(), manifest.rejected.len()), (0, 1));
}
