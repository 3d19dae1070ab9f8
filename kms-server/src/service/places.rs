//! Places for mutations: bounded in all, and for each tenant, so that none can take them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Full;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Mutations at a time: each holds an intent and a place in the HSM keeper's queue.
pub const MAX_MUTATIONS: usize = 256;
/// Mutations of one tenant at a time. They change its rows one after another, so more would only wait; a quarter of
/// [`MAX_MUTATIONS`] leaves room for others beside three tenants that take all they may.
pub const MAX_TENANT_MUTATIONS: usize = MAX_MUTATIONS / 4;

/// The places, and who has them.
#[derive(Debug)]
pub(super) struct Places {
    all: Arc<Semaphore>,
    by_tenant: Mutex<HashMap<Box<str>, usize>>,
}

/// A mutation's place; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    tenant: Option<Box<str>>,
    _place: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new() -> Arc<Self> {
        let all = Arc::new(Semaphore::new(MAX_MUTATIONS));
        Arc::new(Self { all, by_tenant: Mutex::default() })
    }

    /// Takes a place for a caller's mutation.
    ///
    /// # Errors
    /// Says whether there is none, or the tenant has all that it may have.
    pub(super) fn enter(self: &Arc<Self>, tenant: &str) -> Result<Place, Full> {
        let place = Arc::clone(&self.all).try_acquire_owned().map_err(|_| Full::Changes)?;
        let mut by_tenant = self.lock();
        let taken = by_tenant.entry(tenant.into()).or_default();
        if *taken >= MAX_TENANT_MUTATIONS {
            return Err(Full::ChangesOfTenant);
        }
        *taken += 1;
        drop(by_tenant);
        Ok(Place { places: Arc::clone(self), tenant: Some(tenant.into()), _place: place })
    }

    /// Waits for a place for what the server does by itself, which no tenant answers for.
    ///
    /// # Errors
    /// When it drains.
    pub(super) async fn enter_internal(self: &Arc<Self>) -> Result<Place, Full> {
        let place = Arc::clone(&self.all).acquire_owned().await.map_err(|_| Full::Changes)?;
        Ok(Place { places: Arc::clone(self), tenant: None, _place: place })
    }

    /// Waits until all places are free, and gives none away afterwards.
    pub(super) async fn close(&self) {
        let all = u32::try_from(MAX_MUTATIONS).unwrap_or(u32::MAX);
        // An error means that it was closed before: nothing is running then either.
        if let Ok(permits) = self.all.acquire_many(all).await {
            permits.forget();
            self.all.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, usize>> {
        self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(tenant) = &self.tenant else { return };
        let mut by_tenant = self.places.lock();
        if let Some(taken) = by_tenant.get_mut(tenant) {
            *taken -= 1;
            if *taken == 0 {
                by_tenant.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(places: &Arc<Places>, tenant: &str, count: usize) -> Vec<Place> {
        (0..count).map(|_| places.enter(tenant).unwrap()).collect()
    }

    #[test]
    fn a_tenant_has_places_up_to_its_limit_and_others_have_theirs() {
        let places = Places::new();
        let mut taken = take(&places, "a", MAX_TENANT_MUTATIONS);
        assert_eq!(places.enter("a").unwrap_err(), Full::ChangesOfTenant);
        assert!(places.enter("b").is_ok());
        taken.pop();
        assert!(places.enter("a").is_ok());
        drop(taken);
        assert!(places.lock().is_empty(), "a tenant without mutations is forgotten");
    }

    #[test]
    fn there_are_places_up_to_the_limit_and_a_refusal_takes_none() {
        let places = Places::new();
        let taken: Vec<_> =
            ["a", "b", "c"].map(|tenant| take(&places, tenant, MAX_TENANT_MUTATIONS)).into();
        assert_eq!(places.enter("a").unwrap_err(), Full::ChangesOfTenant);
        let last = take(&places, "d", MAX_MUTATIONS - 3 * MAX_TENANT_MUTATIONS);
        assert_eq!(places.enter("e").unwrap_err(), Full::Changes);
        assert_eq!(places.lock().len(), 4, "who was refused is not remembered");
        drop((taken, last));
        assert_eq!(places.all.available_permits(), MAX_MUTATIONS);
    }
}
