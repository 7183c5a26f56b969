//! The device status field as a state machine (virtio 1.2, sections 2.1 and 3.1).
//!
//! Promises: a driver climbs ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK in this order, and goes down only through a reset. Must never: look
//! at anything but the two numbers.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};

/// What a write to the status register means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Back to the beginning.
    Reset,
    /// These bits are new; none at all is possible.
    Add(u32),
    /// Against the rules: nothing changes.
    Refused,
}

/// The ladder, from below.
const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// What writing `written` means when the driver's bits are `current`.
pub fn transition(current: u32, written: u32) -> Transition {
    if written == 0 {
        return Transition::Reset;
    }
    // The device's own bit: a driver that adds to what it read gives it back.
    let wanted = written & !NEEDS_RESET;
    let ladder = STEPS.iter().fold(0, |bits, step| bits | step);
    let unknown = wanted & !(ladder | FAILED) != 0;
    let removes = current & !wanted != 0;
    let after_failure = current & FAILED != 0 && wanted != current;
    if unknown || removes || after_failure || skips(wanted) {
        return Transition::Refused;
    }
    Transition::Add(wanted & !current)
}

/// Whether a step is taken before one below it.
fn skips(bits: u32) -> bool {
    STEPS.windows(2).any(|pair| bits & pair[1] != 0 && bits & pair[0] == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_climbs_step_by_step() {
        let mut status = 0;
        for step in STEPS {
            assert_eq!(transition(status, status | step), Transition::Add(step));
            status |= step;
        }
        assert_eq!(transition(status, status), Transition::Add(0));
        assert_eq!(transition(status, 0), Transition::Reset);
    }

    #[test]
    fn several_steps_at_once_are_fine_if_none_is_left_out() {
        assert_eq!(transition(0, ACKNOWLEDGE | DRIVER), Transition::Add(ACKNOWLEDGE | DRIVER));
        assert_eq!(transition(0, DRIVER), Transition::Refused);
        assert_eq!(transition(0, ACKNOWLEDGE | FEATURES_OK), Transition::Refused);
        assert_eq!(transition(ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | DRIVER_OK), Transition::Refused);
    }

    #[test]
    fn no_bit_goes_away_without_a_reset() {
        let up = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        for bit in STEPS {
            assert_eq!(transition(up, up & !bit), Transition::Refused);
        }
    }

    #[test]
    fn after_giving_up_only_a_reset_helps() {
        let given_up = ACKNOWLEDGE | DRIVER | FAILED;
        assert_eq!(transition(ACKNOWLEDGE | DRIVER, given_up), Transition::Add(FAILED));
        assert_eq!(transition(0, FAILED), Transition::Add(FAILED));
        assert_eq!(transition(given_up, given_up | FEATURES_OK), Transition::Refused);
        assert_eq!(transition(given_up, given_up), Transition::Add(0));
        assert_eq!(transition(given_up, 0), Transition::Reset);
    }

    #[test]
    fn the_devices_own_bit_is_not_the_drivers_to_set() {
        assert_eq!(transition(0, ACKNOWLEDGE | NEEDS_RESET), Transition::Add(ACKNOWLEDGE));
        assert_eq!(transition(0, NEEDS_RESET), Transition::Add(0));
    }

    #[test]
    fn every_reachable_status_is_a_prefix_of_the_ladder() {
        let prefixes: Vec<u32> =
            (0..=STEPS.len()).map(|count| STEPS[..count].iter().fold(0, |bits, step| bits | step)).collect();
        for current in &prefixes {
            for written in 0..=0x1ff {
                if let Transition::Add(added) = transition(*current, written) {
                    assert!(prefixes.contains(&((current | added) & !FAILED)), "{current:#x} -> {written:#x}");
                }
            }
        }
    }
}
