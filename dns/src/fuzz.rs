//! A small mutational fuzzer that needs no tools: a stored corpus, a seed, and as many rounds as asked
//! for, so that every run of the tests tries something, and a long one is a matter of
//! `SLUICE_FUZZ_ROUNDS=10000000 SLUICE_FUZZ_SEED=7 cargo test -p sluice-dns --lib exception`.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Queries to begin with.
pub(crate) const QUERIES: &str = include_str!("../fuzz/queries.txt");
/// Answers of upstreams to begin with.
pub(crate) const ANSWERS: &str = include_str!("../fuzz/answers.txt");

/// Octets that mean something in many places.
const TELLING: [u8; 14] = [0, 1, 2, 12, 28, 33, 41, 63, 64, 127, 128, 0xc0, 0xfe, 0xff];

/// Pseudo-random numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below a bound; 0 for the bound 0.
    fn below(&mut self, bound: usize) -> usize {
        // A remainder of 64 bits is even enough.
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => default,
    }
}

/// The messages of a corpus.
fn corpus(text: &str) -> Vec<Vec<u8>> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, digits) = line.split_once(": ").unwrap_or((line, ""));
            let octet = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect(name);
            (0..digits.len()).step_by(2).map(octet).collect()
        })
        .collect()
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random, corpus: &[Vec<u8>]) {
    let at = random.below(bytes.len());
    match random.below(10) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = TELLING[random.below(TELLING.len())],
        2 => bytes.insert(at, TELLING[random.below(TELLING.len())]),
        3 if !bytes.is_empty() => drop(bytes.remove(at)),
        4 => bytes.truncate(at),
        5 if bytes.len() > 12 => bytes[4 + random.below(8)] = random.below(4) as u8,
        6 => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len());
            bytes.splice(at.., other[from..].iter().copied());
        }
        7 => {
            let end = (at + random.below(32)).min(bytes.len());
            let part = bytes[at.min(end)..end].to_vec();
            bytes.splice(at..at, part);
        }
        // The spelling of a name.
        8 => bytes.iter_mut().skip(12).for_each(|byte| {
            if byte.is_ascii_alphabetic() && random.next() & 1 == 0 {
                *byte ^= 0x20;
            }
        }),
        _ if bytes.len() > 1 => {
            // Two octets that point somewhere.
            let pointer = 0xc000 | random.below(bytes.len() + 4) as u16;
            let at = at.min(bytes.len() - 2);
            bytes[at..at + 2].copy_from_slice(&pointer.to_be_bytes());
        }
        _ => bytes.push(0),
    }
    bytes.truncate(4096);
}

/// Hands over every message of the corpus, and then what comes of changing them. A failure names the
/// message.
pub(crate) fn run(text: &str, check: impl Fn(&[u8])) {
    let corpus = corpus(text);
    let seed = number("SLUICE_FUZZ_SEED", 1);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let try_one = |bytes: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(bytes))) {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("seed {seed}: this message fails, and belongs into the corpus: {digits}");
            resume_unwind(panic);
        }
    };
    corpus.iter().for_each(|bytes| try_one(bytes));
    for _ in 0..number("SLUICE_FUZZ_ROUNDS", 20_000) {
        let mut bytes = corpus[random.below(corpus.len())].clone();
        for _ in 0..=random.below(5) {
            mutate(&mut bytes, &mut random, &corpus);
        }
        try_one(&bytes);
    }
}
