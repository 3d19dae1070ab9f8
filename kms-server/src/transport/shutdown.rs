//! The signal to stop: raised once, seen by everyone who holds a clone.
//!
//! It must never be lost: who asks late is told at once.

use tokio::sync::watch;

/// Raises the signal; dropping it raises the signal too.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl ShutdownTrigger {
    /// Tells every holder of the signal to stop.
    pub fn trigger(&self) {
        self.0.send_replace(true);
    }
}

/// The signal to stop.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Makes a signal and its trigger.
    pub fn channel() -> (ShutdownTrigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownTrigger(sender), Self(receiver))
    }

    /// Returns whether the signal was raised.
    pub fn is_triggered(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns the bare channel, for those below transport.
    pub fn into_receiver(self) -> watch::Receiver<bool> {
        self.0
    }

    /// Waits until the signal is raised.
    pub async fn triggered(&mut self) {
        // An error means that the trigger is gone, which counts as raised.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_late_listener_sees_the_signal() {
        let (trigger, shutdown) = Shutdown::channel();
        assert!(!shutdown.is_triggered());
        trigger.trigger();
        let mut late = shutdown.clone();
        late.triggered().await;
        assert!(late.is_triggered());
    }

    #[tokio::test]
    async fn dropping_the_trigger_raises_the_signal() {
        let (trigger, mut shutdown) = Shutdown::channel();
        drop(trigger);
        shutdown.triggered().await;
    }
}
