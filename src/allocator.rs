//! The allocator: mimalloc, told when to give memory back to the system at once.
//!
//! Batches are freed by other threads than those that allocated them, and the system's own allocator keeps such memory for long; that of
//! musl, which the image is linked with, is slow. mimalloc keeps what is free for a second, and looks for it at every ten thousandth call
//! that takes its slow path. Queries live on that: they take and free the same megabytes over and over, and a third of their time goes to
//! page faults without. A merge makes few calls, for arrays of megabytes: within that second, or until those calls were made, it takes new
//! memory for each, and its resident memory was ten times what it held (`benches/merge.rs` of `storage` shows it). So memory is given back
//! at once while merges run, and only then.
//!
//! This module holds the only unsafe code of the workspace: there is no other way to set an option of mimalloc than its C interface, or
//! its environment before the process begins.

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h: milliseconds until free memory is given back. The crate leaves its name out.
const PURGE_DELAY: mi_option_t = 15;

/// mimalloc's own delay.
const LATER: std::ffi::c_long = 1000;

/// Gives memory back to the system when it is freed, or else a second later, from now on. Has no effect if the environment has
/// `MIMALLOC_PURGE_DELAY`.
#[expect(unsafe_code, reason = "see the module documentation")]
pub(crate) fn give_back_at_once(at_once: bool) {
    // SAFETY: the function looks an option up by a number that it checks, and stores a word. Other threads read that word meanwhile, not
    // atomically as far as C is concerned; it is aligned, so they see the old or the new number, and either is one that they may see.
    unsafe { mi_option_set_default(PURGE_DELAY, if at_once { 0 } else { LATER }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(unsafe_code, reason = "see the module documentation")]
    fn delay() -> std::ffi::c_long {
        // SAFETY: a look at a table.
        unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) }
    }

    /// What the environment sets, a process of its own finds again, whatever it is told: so the number is that of the option.
    #[test]
    fn the_option_is_that_of_the_delay() {
        const SAYS: &str = "RUBATO_TEST_PURGE_DELAY";
        if std::env::var_os(SAYS).is_some() {
            assert_eq!(delay(), 777);
            give_back_at_once(true);
            assert_eq!(delay(), 777);
            return;
        }
        let before = delay();
        give_back_at_once(true);
        assert_eq!(delay(), 0);
        give_back_at_once(false);
        assert_eq!((delay(), delay()), (before, LATER));
        let mut process = std::process::Command::new(std::env::current_exe().expect("this test"));
        process.args(["--exact", "allocator::tests::the_option_is_that_of_the_delay"]);
        let ended = process.env(SAYS, "").env("MIMALLOC_PURGE_DELAY", "777").output().expect("a process");
        let says = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && says.contains("1 passed"), "{says}");
    }
}
