//! Who may go on: a bounded number at once, and of those that wait the newest first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

#[derive(Debug)]
struct State {
    free: usize,
    /// The newest at the back.
    waiting: VecDeque<oneshot::Sender<Turn>>,
    most: usize,
}

/// Lets a bounded number pass. Under overload whoever came last has the best chance to be still
/// waited for, so the newest goes first, and the oldest is turned away when too many wait.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Mutex<State>>);

/// The right to go on; it passes to another when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Option<Gate>);

impl Gate {
    /// A gate for so many at once, where so many may wait.
    pub(super) fn new(at_once: usize, waiting: usize) -> Self {
        let waiting = (VecDeque::new(), waiting);
        Self(Arc::new(Mutex::new(State { free: at_once, waiting: waiting.0, most: waiting.1 })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done by a panic here.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn; `None` where newer ones took the place.
    pub(super) async fn enter(&self) -> Option<Turn> {
        let (receiver, oldest) = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Some(Turn(Some(self.clone())));
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.push_back(sender);
            let full = state.waiting.len() > state.most;
            (receiver, if full { state.waiting.pop_front() } else { None })
        };
        // Its end tells the oldest one that it waits in vain.
        drop(oldest);
        receiver.await.ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(gate) = self.0.take() else { return };
        loop {
            let newest = {
                let mut state = gate.lock();
                match state.waiting.pop_back() {
                    Some(newest) => newest,
                    None => {
                        state.free += 1;
                        return;
                    }
                }
            };
            match newest.send(Turn(Some(gate.clone()))) {
                Ok(()) => return,
                // It has given up; the turn is still ours to pass on, once.
                Err(mut unused) => unused.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// D18: the newest goes first, the oldest is turned away when too many wait.
    #[tokio::test]
    async fn the_newest_goes_first_and_the_oldest_is_turned_away() {
        let gate = Gate::new(1, 2);
        let turn = gate.enter().await.expect("free");
        let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
        for n in 0..3 {
            let (gate, sender) = (gate.clone(), sender.clone());
            let waiting = gate.0.clone();
            tokio::spawn(async move {
                let turn = gate.enter().await;
                sender.send((n, turn.is_some())).expect("the test listens");
            });
            // Until it waits, so that the order is certain.
            let full = |n: usize| waiting.lock().expect("whole").waiting.len() == n.min(1) + 1;
            while !full(n) {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(order.recv().await, Some((0, false)), "the oldest");
        drop(turn);
        assert_eq!(order.recv().await, Some((2, true)), "the newest");
        assert_eq!(order.recv().await, Some((1, true)));
        assert!(gate.enter().await.is_some(), "free again");
    }

    /// D18: who gives up does not take the turn with it.
    #[tokio::test]
    async fn who_has_given_up_is_passed_over() {
        let gate = Gate::new(1, 8);
        let turn = gate.enter().await.expect("free");
        let gone = tokio::time::timeout(std::time::Duration::ZERO, gate.enter()).await;
        assert!(gone.is_err());
        drop(turn);
        assert!(gate.enter().await.is_some());
    }
}
