//! The eBPF programs: thin hooks that bind [`sluice_datapath`] to TC and XDP contexts and to maps.
//!
//! The library has the TC and XDP bindings of [`sluice_datapath::Packet`] and
//! [`sluice_datapath::balance::Hook`]. There is one folder per object: `balancer/` and `backend/`,
//! and `baseline/`, whose programs are references for measurements and not part of the released
//! binary.
#![no_std]
// For a load that must be one instruction.
#![feature(asm_experimental_arch)]

pub mod access;
pub mod maps;
pub mod tc;
pub mod xdp;

/// Some helpers are only available to programs under a GPL-compatible licence. Sluice is under the
/// MIT licence.
#[macro_export]
macro_rules! license {
    () => {
        #[expect(unsafe_code, reason = "the loader finds the licence by section and symbol")]
        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
    };
}

/// The compiler requires a handler. No code of this crate can panic: the verifier would reject the
/// loop below if it were reachable.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
