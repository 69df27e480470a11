//! Numbers for things that the kernel's programs refer to.

/// Hands out numbers, next-fit: each one is greater than the one before, until they wrap.
///
/// A number that has become free is not given away again before all others have been, because a
/// program (or a conntrack entry, or a socket) may still hold it. Zero is never given: in the
/// kernel's tables it means "none".
#[derive(Clone, Debug)]
pub(crate) struct Ids {
    next: u32,
}

impl Default for Ids {
    fn default() -> Self {
        Self { next: 1 }
    }
}

impl Ids {
    /// Continues after the greatest of the numbers that are in use.
    pub(crate) fn after(used: impl IntoIterator<Item = u32>) -> Self {
        Self { next: used.into_iter().max().unwrap_or(0).wrapping_add(1).max(1) }
    }

    /// The next number that is free. Some number must be: each of 2^32 that is in use takes memory.
    pub(crate) fn allocate(&mut self, in_use: impl Fn(u32) -> bool) -> u32 {
        loop {
            let number = self.next;
            self.next = self.next.wrapping_add(1).max(1);
            if !in_use(number) {
                return number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_at_one_and_rise() {
        let mut ids = Ids::default();
        assert_eq!((ids.allocate(|_| false), ids.allocate(|_| false)), (1, 2));
    }

    #[test]
    fn a_freed_number_is_not_given_away_at_once() {
        let mut ids = Ids::default();
        for expected in 1..=3 {
            // Nothing is ever in use: all numbers are freed at once.
            assert_eq!(ids.allocate(|_| false), expected);
        }
    }

    #[test]
    fn numbers_wrap_past_zero_and_skip_what_is_in_use() {
        let mut ids = Ids::after([u32::MAX - 1]);
        let in_use = |n| n == u32::MAX || n == 1;
        assert_eq!(ids.allocate(in_use), 2);
        let mut ids = Ids::after([u32::MAX]);
        assert_eq!(ids.allocate(|_| false), 1);
    }
}
