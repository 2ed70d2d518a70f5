//! Types that may be copied to and from map keys and values byte by byte.
#![expect(unsafe_code, reason = "the trait `Pod` is unsafe to implement")]

/// A plain-old-data type, which may cross the kernel boundary as its bytes.
///
/// # Safety
///
/// The type is `#[repr(C)]`, has no padding, and every bit pattern is a valid value. Maps require
/// it, because the kernel compares keys byte by byte, and another version of a program may have
/// written a value.
pub unsafe trait Pod: Copy + 'static {
    /// The value of zero bytes: an array element that was never written.
    fn zeroed() -> Self {
        // SAFETY: every bit pattern is a valid value.
        unsafe { core::mem::zeroed() }
    }
}

// SAFETY: integers and arrays of bytes have no padding and accept every bit pattern.
unsafe impl Pod for u32 {}
// SAFETY: as above.
unsafe impl Pod for u64 {}
// SAFETY: as above.
unsafe impl Pod for u16 {}
// SAFETY: as above, and an array adds no padding.
unsafe impl<T: Pod, const N: usize> Pod for [T; N] {}
// SAFETY: as above.
unsafe impl Pod for u8 {}

/// Declares that a `#[repr(C)]` struct is [`Pod`], and asserts the size that follows when it has no
/// padding.
macro_rules! pod {
    ($type:ty, $size:expr) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        // SAFETY: `#[repr(C)]`, made of integers and byte arrays; the asserted size excludes
        // padding.
        #[expect(unsafe_code, reason = "the trait `Pod` is unsafe to implement")]
        unsafe impl $crate::abi::pod::Pod for $type {}
    };
}
pub(crate) use pod;
