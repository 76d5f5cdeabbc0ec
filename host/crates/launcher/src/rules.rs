//! The rules of the protocol that code and crash-point model share.

use crate::launch::StoredPhase;

/// What the store knows of a launch whose shim is gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) phase: StoredPhase,
    /// Whether the machine runs since that was committed.
    pub(crate) same_boot: bool,
}

/// Whether a launch without a shim and without a record provably ran nothing (DESIGN §5, step 4). `started` is whether its mark
/// is there; to be asked under the launch's lock.
///
/// The mark is created before the fork and made durable a moment later. While the machine runs, its absence is proof. After a
/// reboot it may have been lost; then a store that says `armed` is, since `pending` is committed at once after `go`.
pub(crate) fn nothing_ran(started: bool, known: Known) -> bool {
    match known.phase {
        StoredPhase::Armed => !started,
        StoredPhase::Pending => !started && known.same_boot,
        StoredPhase::Running => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_launch_that_provably_ran_nothing_keeps_its_place() {
        let cases = [
            (StoredPhase::Armed, true, true),
            (StoredPhase::Armed, false, true),
            (StoredPhase::Pending, true, true),
            (StoredPhase::Pending, false, false),
            (StoredPhase::Running, true, false),
            (StoredPhase::Running, false, false),
        ];
        for (phase, same_boot, without_mark) in cases {
            let known = Known { phase, same_boot };
            assert_eq!(nothing_ran(false, known), without_mark, "{known:?}");
            assert!(!nothing_ran(true, known), "{known:?}: the mark says that it may have run");
        }
    }
}
