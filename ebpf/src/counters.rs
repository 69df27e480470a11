//! Counting.

use sluice_abi::Counter;

use crate::maps::COUNTERS;

/// Adds one to this CPU's count.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is this CPU's element, and a program is not interrupted by itself on
        // one CPU, except by one of another type: then one count may be lost.
        unsafe { *value = (*value).wrapping_add(1) };
    }
}
