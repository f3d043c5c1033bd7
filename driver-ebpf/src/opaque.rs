//! A zero the compiler does not know to be one.
//!
//! LLVM makes neighbouring stores of a known zero a call of `memset`, which loaders other than aya take for a global
//! function that returns nothing, and refuse; and a loop over bytes would cost more than the rest of a frame.

/// 0.
#[inline(always)]
#[must_use]
pub fn zero() -> u32 {
    #[cfg(not(target_arch = "bpf"))]
    {
        0
    }
    #[cfg(target_arch = "bpf")]
    {
        let zero: u64;
        // SAFETY: sets one register.
        unsafe { core::arch::asm!("{0} = 0", out(reg) zero, options(pure, nomem, preserves_flags)) };
        zero as u32
    }
}

/// Two of them, as bytes.
#[inline(always)]
#[must_use]
pub fn zeros() -> [u8; 2] {
    let zero = zero() as u8;
    [zero, zero]
}

/// A number the compiler does not know the range of: so that a check the verifier needs is not optimised away.
#[inline(always)]
#[must_use]
pub fn hide(number: u32) -> u32 {
    #[cfg(not(target_arch = "bpf"))]
    {
        number
    }
    #[cfg(target_arch = "bpf")]
    {
        let hidden: u64;
        // SAFETY: copies one register. (An empty text would leave line information on no instruction, which the kernel
        // refuses.)
        unsafe {
            core::arch::asm!("{0} = {1}", out(reg) hidden, in(reg) u64::from(number), options(pure, nomem, preserves_flags));
        };
        hidden as u32
    }
}

/// Reads back what was just written to the scratch, of which the verifier keeps no track: what it knew of each way that
/// led here is forgotten, and it goes on once instead of once for each.
#[inline(always)]
pub fn reread<T: Copy>(place: &T) -> T {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::read_volatile(place) }
}

/// The same place. The compiler does not know that it is, and so does not keep what it read there before.
#[inline(always)]
#[must_use]
pub fn anew<T>(place: &T) -> &T {
    #[cfg(not(target_arch = "bpf"))]
    {
        place
    }
    #[cfg(target_arch = "bpf")]
    {
        let same: *const T;
        // SAFETY: copies one register, which holds a reference.
        unsafe {
            core::arch::asm!("{0} = {1}", out(reg) same, in(reg) place, options(pure, nomem, preserves_flags));
            &*same
        }
    }
}
