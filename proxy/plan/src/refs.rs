//! Reference counts.

use std::collections::HashMap;

/// How often each number is referred to. What is not referred to takes no memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refs {
    counts: HashMap<u32, u32>,
}

impl Refs {
    /// Counts one more reference; tells whether it is the first.
    pub(crate) fn retain(&mut self, number: u32) -> bool {
        let count = self.counts.entry(number).or_default();
        *count += 1;
        *count == 1
    }

    /// Counts one reference less; tells whether it was the last.
    pub(crate) fn release(&mut self, number: u32) -> bool {
        let Some(count) = self.counts.get_mut(&number) else { return false };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&number);
            return true;
        }
        false
    }

    /// Whether anything refers to the number.
    pub(crate) fn is_used(&self, number: u32) -> bool {
        self.counts.contains_key(&number)
    }
}
