//! The allocator: mimalloc, told to give memory back to the system when it is freed.
//!
//! Batches are freed by other threads than those that allocated them, and the system's own allocator keeps such memory for long; that of
//! musl, which the image is linked with, is slow. mimalloc keeps what is free for a second, and looks for it at every ten thousandth call
//! that takes its slow path. A merge makes few calls, for arrays of megabytes: within that second, or until those calls were made, it takes
//! new memory for each. Its resident memory was ten times what it held (`benches/merge.rs` of `storage` shows it). What a span costs to
//! take in is the same without the delay.
//!
//! This module holds the only unsafe code of the workspace: there is no other way to set an option of mimalloc than its C interface, or
//! its environment before the process begins.

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h: milliseconds until free memory is given back. The crate leaves its name out.
const PURGE_DELAY: mi_option_t = 15;

/// Gives memory back to the system when it is freed, unless the environment has `MIMALLOC_PURGE_DELAY`.
///
/// To be called at the very begin, before there is another thread.
#[expect(unsafe_code, reason = "see the module documentation")]
pub(crate) fn free_at_once() {
    // SAFETY: the function writes a number to a table of the library, which it looks up by a number that is checked. It is not
    // synchronized with other threads, and there are none.
    unsafe { mi_option_set_default(PURGE_DELAY, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the test sets, a process of its own finds again: so the number is that of the option.
    #[test]
    #[expect(unsafe_code, reason = "see the module documentation")]
    fn the_option_is_that_of_the_delay() {
        const SAYS: &str = "RUBATO_TEST_PURGE_DELAY";
        if std::env::var_os(SAYS).is_some() {
            // SAFETY: a look at a table that nobody writes to.
            let is = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
            assert_eq!(is, 777);
            return;
        }
        let mut process = std::process::Command::new(std::env::current_exe().expect("this test"));
        process.args(["--exact", "allocator::tests::the_option_is_that_of_the_delay"]);
        let ended = process.env(SAYS, "").env("MIMALLOC_PURGE_DELAY", "777").output().expect("a process");
        let says = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && says.contains("1 passed"), "{says}");
    }
}
