//! Interrupts: SIGINT and SIGTERM, as messages to the scheduler.

use std::io;
use std::sync::mpsc::Sender;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use super::local::Message;

/// Forwards interrupts until it is dropped.
pub(super) struct Interrupts(Handle);

impl Interrupts {
    /// Begins to forward.
    pub(super) fn forward(inbox: Sender<Message>) -> io::Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let handle = signals.handle();
        std::thread::Builder::new().name("interrupts".into()).stack_size(1 << 18).spawn(move || {
            for _ in signals.forever() {
                if inbox.send(Message::Interrupt).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self(handle))
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.0.close();
    }
}
