//! What the programs for the kernel share: the TC and XDP bindings of [`sluice_datapath::Packet`].
//!
//! Only this crate holds code that runs nowhere but in the kernel. It decides nothing: `balancer/`
//! and `backend.rs` are the two objects that are loaded, each with its maps and a few lines that
//! turn a `Result` into an action. `baseline.rs` is a third, with programs that measurements
//! compare with; no binary for users holds it.
#![no_std]
// Some loads must be one instruction.
#![feature(asm_experimental_arch)]

pub mod access;
pub mod hook;
pub mod maps;
pub mod next;
pub mod tc;
pub mod xdp;

/// The kernel lets only programs under a GPL-compatible licence use some helpers; Sluice is under
/// the MIT licence.
#[macro_export]
macro_rules! license {
    () => {
        #[expect(unsafe_code, reason = "the loader finds the licence by section and symbol")]
        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
    };
}

/// No code of ours can panic, and the verifier would refuse the loop below if it could be reached:
/// the compiler wants a handler.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
