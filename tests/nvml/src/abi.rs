//! The functions of NVML (<https://docs.nvidia.com/deploy/nvml-api/>), by their C names.

use std::os::raw::{c_char, c_int, c_uint, c_ulonglong};
use std::sync::{Arc, Mutex, PoisonError};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlMemory_v2_t, nvmlPciInfo_t, nvmlProcessInfo_t, nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED,
    nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST, nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE,
    nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT, nvmlReturn_enum_NVML_ERROR_NOT_FOUND,
    nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED, nvmlReturn_enum_NVML_SUCCESS, nvmlReturn_t, nvmlUtilization_t,
};

use crate::machine::{Gpu, Machine, Mig, Process, error_of, wait_until};

pub(crate) type Done = Result<(), nvmlReturn_t>;

pub(crate) const INVALID_ARGUMENT: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
const NOT_SUPPORTED: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
const NOT_FOUND: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_NOT_FOUND;

/// `usedGpuMemory` where the driver does not say.
const NOT_AVAILABLE: c_ulonglong = c_ulonglong::MAX;

/// A call: it is noted, hangs or fails when the file says so, and else does its work.
pub(crate) fn call(function: &str, uuid: Option<&str>, work: impl FnOnce(&Arc<Machine>) -> Done) -> nvmlReturn_t {
    let Some(mut machine) = Machine::present() else { return nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED };
    machine.note(function, uuid);
    if machine.hangs(function) {
        wait_until(None, |machine| !machine.hangs(function));
        match Machine::present() {
            Some(present) => machine = present,
            None => return nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED,
        }
    }
    let done = error_of(&machine.errors, function).and_then(|()| work(&machine));
    done.err().unwrap_or(nvmlReturn_enum_NVML_SUCCESS)
}

/// What a handle stands for.
pub(crate) struct Found<'a> {
    pub(crate) gpu: &'a Gpu,
    pub(crate) mig: Option<&'a Mig>,
}

impl Found<'_> {
    fn processes(&self) -> &[Process] {
        self.mig.map_or(&self.gpu.processes, |mig| &mig.processes)
    }

    fn memory_total(&self) -> u64 {
        self.mig.map_or(self.gpu.memory_total, |mig| mig.memory_total)
    }

    fn memory_used(&self) -> u64 {
        let reserved = if self.mig.is_some() { 0 } else { self.gpu.memory_reserved };
        reserved + self.processes().iter().filter_map(|process| process.memory).sum::<u64>()
    }

    /// What NVML knows of whole GPUs only.
    fn whole(&self) -> Result<&Gpu, nvmlReturn_t> {
        if self.mig.is_some() { Err(NOT_SUPPORTED) } else { Ok(self.gpu) }
    }
}

fn find<'a>(machine: &'a Machine, uuid: &str) -> Option<Found<'a>> {
    machine.gpus.iter().find_map(|gpu| {
        if gpu.uuid == uuid {
            return Some(Found { gpu, mig: None });
        }
        let mig = gpu.mig.iter().flatten().find(|mig| mig.uuid == uuid)?;
        Some(Found { gpu, mig: Some(mig) })
    })
}

/// The GPUs and instances that were ever asked for. A handle is the place here, from 1.
static HANDLES: Mutex<Vec<Arc<str>>> = Mutex::new(Vec::new());

pub(crate) fn handle_of(uuid: &str) -> nvmlDevice_t {
    let mut handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
    let at = handles.iter().position(|known| **known == *uuid).unwrap_or_else(|| {
        handles.push(uuid.into());
        handles.len() - 1
    });
    std::ptr::without_provenance_mut(at + 1)
}

pub(crate) fn uuid_of(device: nvmlDevice_t) -> Option<Arc<str>> {
    let handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
    handles.get(device.addr().checked_sub(1)?).cloned()
}

/// A call about a GPU or an instance.
fn call_of(function: &str, device: nvmlDevice_t, work: impl FnOnce(&Found<'_>) -> Done) -> nvmlReturn_t {
    let uuid = uuid_of(device);
    call(function, uuid.as_deref(), |machine| {
        // A handle outlives its GPU, as in the driver.
        let found = uuid.as_deref().map(|uuid| find(machine, uuid)).ok_or(INVALID_ARGUMENT)?;
        let found = found.filter(|found| !found.gpu.lost).ok_or(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST)?;
        error_of(&found.gpu.errors, function)?;
        work(&found)
    })
}

/// Writes an answer.
///
/// # Safety
/// `to` is null or may be written to.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Done {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, so the caller's promise holds.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes a text and its NUL.
///
/// # Safety
/// `to` is null or has room for `length` bytes.
unsafe fn put_text(to: *mut c_char, length: c_uint, text: &str) -> Done {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
    }
    // SAFETY: there is room for the text and the NUL, as was compared, and a text of ours does not overlap the caller's memory.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}

/// Declares functions under their C names.
macro_rules! nvml {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        #[doc = concat!("`", stringify!($name), "` of NVML.")]
        ///
        /// # Safety
        /// Pointers are as NVML's documentation asks for: null, or to memory of the size that it names.
        #[allow(non_snake_case, reason = "the names are NVML's")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> nvml_wrapper_sys::bindings::nvmlReturn_t $body
    )*};
}
pub(crate) use nvml;

nvml! {
    fn nvmlInit_v2() {
        call("nvmlInit_v2", None, |_| Ok(()))
    }

    fn nvmlInitWithFlags(_flags: c_uint) {
        call("nvmlInitWithFlags", None, |_| Ok(()))
    }

    fn nvmlShutdown() {
        call("nvmlShutdown", None, |_| Ok(()))
    }

    fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) {
        // SAFETY: the caller's promise.
        call("nvmlSystemGetDriverVersion", None, |machine| unsafe { put_text(version, length, &machine.driver_version) })
    }

    fn nvmlDeviceGetCount_v2(count: *mut c_uint) {
        // SAFETY: the caller's promise.
        call("nvmlDeviceGetCount_v2", None, |machine| unsafe { put(count, machine.gpus.len() as c_uint) })
    }

    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t) {
        call("nvmlDeviceGetHandleByIndex_v2", None, |machine| {
            let gpu = machine.gpus.get(index as usize).ok_or(INVALID_ARGUMENT)?;
            if gpu.lost {
                return Err(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST);
            }
            // SAFETY: the caller's promise.
            unsafe { put(device, handle_of(&gpu.uuid)) }
        })
    }

    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut nvmlDevice_t) {
        if uuid.is_null() {
            return INVALID_ARGUMENT;
        }
        // SAFETY: not null, so a text with its NUL, as the caller promises.
        let uuid = unsafe { std::ffi::CStr::from_ptr(uuid) }.to_string_lossy();
        call("nvmlDeviceGetHandleByUUID", Some(&uuid), |machine| {
            let found = find(machine, &uuid).ok_or(NOT_FOUND)?;
            if found.gpu.lost {
                return Err(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST);
            }
            // SAFETY: the caller's promise.
            unsafe { put(device, handle_of(&uuid)) }
        })
    }

    fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) {
        let uuid = uuid_of(device);
        call("nvmlDeviceGetIndex", uuid.as_deref(), |machine| {
            let at = machine.gpus.iter().position(|gpu| Some(&*gpu.uuid) == uuid.as_deref()).ok_or(INVALID_ARGUMENT)?;
            // SAFETY: the caller's promise.
            unsafe { put(index, at as c_uint) }
        })
    }

    fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) {
        call_of("nvmlDeviceGetUUID", device, |found| {
            // SAFETY: the caller's promise.
            unsafe { put_text(uuid, length, found.mig.map_or(&found.gpu.uuid, |mig| &mig.uuid)) }
        })
    }

    fn nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: c_uint) {
        call_of("nvmlDeviceGetName", device, |found| {
            // SAFETY: the caller's promise.
            unsafe { put_text(name, length, &found.gpu.name) }
        })
    }

    fn nvmlDeviceGetPciInfo_v3(device: nvmlDevice_t, pci: *mut nvmlPciInfo_t) {
        call_of("nvmlDeviceGetPciInfo_v3", device, |found| {
            let mut info = nvmlPciInfo_t {
                busIdLegacy: [0; 16],
                domain: 0,
                bus: 0,
                device: 0,
                pciDeviceId: 0,
                pciSubSystemId: 0,
                busId: [0; 32],
            };
            let length = info.busId.len() as c_uint;
            // SAFETY: the field has as much room as is said, and `pci` is as the caller promises.
            unsafe {
                put_text(info.busId.as_mut_ptr(), length, &found.gpu.pci_bus_id)?;
                put(pci, info)
            }
        })
    }

    fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, memory: *mut nvmlMemory_v2_t) {
        call_of("nvmlDeviceGetMemoryInfo_v2", device, |found| {
            let (total, used) = (found.memory_total(), found.memory_used());
            let free = total.saturating_sub(used);
            let version = (std::mem::size_of::<nvmlMemory_v2_t>() | 2 << 24) as c_uint;
            // SAFETY: the caller's promise.
            unsafe { put(memory, nvmlMemory_v2_t { version, total, reserved: 0, free, used }) }
        })
    }

    fn nvmlDeviceGetCudaComputeCapability(device: nvmlDevice_t, major: *mut c_int, minor: *mut c_int) {
        call_of("nvmlDeviceGetCudaComputeCapability", device, |found| {
            let (whole, part) = found.gpu.compute_capability;
            // SAFETY: the caller's promise.
            unsafe {
                put(major, whole.cast_signed())?;
                put(minor, part.cast_signed())
            }
        })
    }

    fn nvmlDeviceGetComputeRunningProcesses_v3(device: nvmlDevice_t, count: *mut c_uint, infos: *mut nvmlProcessInfo_t) {
        call_of("nvmlDeviceGetComputeRunningProcesses_v3", device, |found| {
            if count.is_null() {
                return Err(INVALID_ARGUMENT);
            }
            let processes = found.processes();
            // SAFETY: not null, and the caller has said there how many fit.
            let room = unsafe { count.read() } as usize;
            // SAFETY: as before.
            unsafe { put(count, processes.len() as c_uint) }?;
            if room < processes.len() {
                return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
            }
            for (at, process) in processes.iter().enumerate() {
                let info = nvmlProcessInfo_t {
                    pid: process.pid,
                    usedGpuMemory: process.memory.unwrap_or(NOT_AVAILABLE),
                    gpuInstanceId: c_uint::MAX,
                    computeInstanceId: c_uint::MAX,
                };
                // SAFETY: there is room for all of them, as was compared.
                unsafe { put(infos.add(at), info) }?;
            }
            Ok(())
        })
    }

    fn nvmlDeviceGetUtilizationRates(device: nvmlDevice_t, utilization: *mut nvmlUtilization_t) {
        call_of("nvmlDeviceGetUtilizationRates", device, |found| {
            let gpu = found.whole()?.utilization;
            // SAFETY: the caller's promise.
            unsafe { put(utilization, nvmlUtilization_t { gpu, memory: gpu }) }
        })
    }

    fn nvmlDeviceGetTemperature(device: nvmlDevice_t, _sensor: c_uint, temperature: *mut c_uint) {
        call_of("nvmlDeviceGetTemperature", device, |found| {
            // SAFETY: the caller's promise.
            unsafe { put(temperature, found.whole()?.temperature) }
        })
    }

    fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, power: *mut c_uint) {
        call_of("nvmlDeviceGetPowerUsage", device, |found| {
            // SAFETY: the caller's promise.
            unsafe { put(power, found.whole()?.power) }
        })
    }

    fn nvmlDeviceGetTotalEnergyConsumption(device: nvmlDevice_t, energy: *mut c_ulonglong) {
        call_of("nvmlDeviceGetTotalEnergyConsumption", device, |found| {
            // SAFETY: the caller's promise.
            unsafe { put(energy, found.whole()?.energy.ok_or(NOT_SUPPORTED)?) }
        })
    }

    fn nvmlDeviceGetMigMode(device: nvmlDevice_t, current: *mut c_uint, pending: *mut c_uint) {
        call_of("nvmlDeviceGetMigMode", device, |found| {
            found.whole()?.mig.as_ref().ok_or(NOT_SUPPORTED)?;
            // SAFETY: the caller's promise.
            unsafe {
                put(current, 1)?;
                put(pending, 1)
            }
        })
    }

    fn nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: *mut c_uint) {
        call_of("nvmlDeviceGetMaxMigDeviceCount", device, |found| {
            // Seven on every GPU that can be cut, whatever was cut.
            let most = if found.whole()?.mig.is_some() { 7 } else { 0 };
            // SAFETY: the caller's promise.
            unsafe { put(count, most) }
        })
    }

    fn nvmlDeviceGetMigDeviceHandleByIndex(device: nvmlDevice_t, index: c_uint, instance: *mut nvmlDevice_t) {
        call_of("nvmlDeviceGetMigDeviceHandleByIndex", device, |found| {
            let instances = found.whole()?.mig.as_deref().ok_or(NOT_SUPPORTED)?;
            let mig = instances.get(index as usize).ok_or(NOT_FOUND)?;
            // SAFETY: the caller's promise.
            unsafe { put(instance, handle_of(&mig.uuid)) }
        })
    }

    fn nvmlDeviceIsMigDeviceHandle(device: nvmlDevice_t, is_mig: *mut c_uint) {
        call_of("nvmlDeviceIsMigDeviceHandle", device, |found| {
            // SAFETY: the caller's promise.
            unsafe { put(is_mig, found.mig.is_some().into()) }
        })
    }

    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance: nvmlDevice_t, device: *mut nvmlDevice_t) {
        call_of("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", instance, |found| {
            found.mig.ok_or(INVALID_ARGUMENT)?;
            // SAFETY: the caller's promise.
            unsafe { put(device, handle_of(&found.gpu.uuid)) }
        })
    }
}
