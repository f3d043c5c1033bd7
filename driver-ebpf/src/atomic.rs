//! A 64-bit word that several CPUs change.
//!
//! rustc's BPF target knows no read-modify-write, and LLVM selects nothing for its atomic loads, although the
//! machine has all of them (`-mcpu=v3`, Linux 5.12): there, they are written out.

pub use word::Word;

#[cfg(not(target_arch = "bpf"))]
mod word {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

    /// The word. Its own order only: nothing else is published with it.
    #[repr(transparent)]
    #[derive(Debug)]
    pub struct Word(AtomicU64);

    impl Word {
        /// A word.
        #[must_use]
        pub const fn new(value: u64) -> Self {
            Self(AtomicU64::new(value))
        }

        /// Its value.
        pub fn load(&self) -> u64 {
            self.0.load(Relaxed)
        }

        /// Replaces its value.
        pub fn store(&self, value: u64) {
            self.0.store(value, Relaxed);
        }

        /// Adds, around the end of the numbers.
        pub fn add(&self, value: u64) {
            self.0.fetch_add(value, Relaxed);
        }

        /// Sets bits.
        pub fn set(&self, bits: u64) {
            self.0.fetch_or(bits, Relaxed);
        }

        /// Leaves only these bits.
        pub fn keep(&self, bits: u64) {
            self.0.fetch_and(bits, Relaxed);
        }

        /// Replaces `old` by `new`; `false` if it was not `old` any more.
        pub fn exchange(&self, old: u64, new: u64) -> bool {
            self.0.compare_exchange(old, new, Relaxed, Relaxed).is_ok()
        }
    }
}

#[cfg(target_arch = "bpf")]
mod word {
    use core::arch::asm;
    use core::cell::UnsafeCell;

    /// The word. Its own order only: nothing else is published with it.
    #[repr(transparent)]
    pub struct Word(UnsafeCell<u64>);

    // SAFETY: every access below is one instruction on an aligned word.
    unsafe impl Sync for Word {}

    impl Word {
        /// A word.
        #[must_use]
        pub const fn new(value: u64) -> Self {
            Self(UnsafeCell::new(value))
        }

        /// Its value.
        #[inline(always)]
        pub fn load(&self) -> u64 {
            // SAFETY: one load of a word that lives as long as `self`.
            unsafe { self.0.get().read_volatile() }
        }

        /// Replaces its value.
        #[inline(always)]
        pub fn store(&self, value: u64) {
            // SAFETY: one store, as above.
            unsafe { self.0.get().write_volatile(value) };
        }

        /// Adds, around the end of the numbers.
        #[inline(always)]
        pub fn add(&self, value: u64) {
            // SAFETY: the instruction changes this word and nothing else.
            unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) self.0.get(), in(reg) value) };
        }

        /// Sets bits.
        #[inline(always)]
        pub fn set(&self, bits: u64) {
            // SAFETY: the instruction changes this word and nothing else.
            unsafe { asm!("lock *(u64 *)({0} + 0) |= {1}", in(reg) self.0.get(), in(reg) bits) };
        }

        /// Leaves only these bits.
        #[inline(always)]
        pub fn keep(&self, bits: u64) {
            // SAFETY: the instruction changes this word and nothing else.
            unsafe { asm!("lock *(u64 *)({0} + 0) &= {1}", in(reg) self.0.get(), in(reg) bits) };
        }

        /// Replaces `old` by `new`; `false` if it was not `old` any more.
        #[inline(always)]
        pub fn exchange(&self, old: u64, new: u64) -> bool {
            let found: u64;
            // SAFETY: the instruction changes this word and r0, which receives what the word was.
            unsafe {
                asm!(
                    "r0 = cmpxchg_64({0} + 0, r0, {1})",
                    in(reg) self.0.get(),
                    in(reg) new,
                    inlateout("r0") old => found,
                );
            }
            found == old
        }
    }
}
