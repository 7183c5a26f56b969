//! What a driver reads about a disk: features and configuration space (virtio 1.2, sections 5.2.3 and 5.2.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::virtio::block::QUEUE_SIZE;
use crate::virtio::block::disk::Disk;
use crate::virtio::block::request::{
    DISCARD_RANGES, DISCARD_SECTORS, SECTOR_SIZE, WRITE_ZEROES_RANGES, WRITE_ZEROES_SECTORS,
};

/// Up to and with the write-zeroes fields.
const LEN: usize = 60;

/// The block size that guests see; requests are in sectors of the same size.
const BLOCK_SIZE: u32 = 512;
const _: () = assert!(BLOCK_SIZE as u64 == SECTOR_SIZE);

/// Sectors to which discards should be aligned: what filesystems give back.
const DISCARD_ALIGNMENT: u32 = 8;

/// The disk's own feature bits.
pub fn features(disk: &Disk) -> u64 {
    let always = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
    let by_access = if disk.read_only() {
        1 << VIRTIO_BLK_F_RO
    } else {
        1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
    };
    always | by_access
}

/// The bytes of `struct virtio_blk_config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace([u8; LEN]);

impl ConfigSpace {
    /// What there is to say about `disk`.
    pub fn new(disk: &Disk) -> Self {
        let mut bytes = [0; LEN];
        let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(0, &disk.sectors().to_le_bytes());
        // Header and status take a descriptor each.
        put(12, &u32::from(QUEUE_SIZE - 2).to_le_bytes());
        put(20, &BLOCK_SIZE.to_le_bytes());
        put(34, &1u16.to_le_bytes());
        if !disk.read_only() {
            put(36, &DISCARD_SECTORS.to_le_bytes());
            put(40, &DISCARD_RANGES.to_le_bytes());
            put(44, &DISCARD_ALIGNMENT.to_le_bytes());
            put(48, &WRITE_ZEROES_SECTORS.to_le_bytes());
            put(52, &WRITE_ZEROES_RANGES.to_le_bytes());
            // Write zeroes may unmap.
            put(56, &[1]);
        }
        Self(bytes)
    }

    /// Copies from `offset`; zeros beyond the end.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let from = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or(&[]);
        data.fill(0);
        for (to, from) in data.iter_mut().zip(from) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use virtio_bindings::virtio_blk::virtio_blk_config;

    use super::*;

    fn disk(read_only: bool) -> Disk {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1000 * 512).unwrap();
        Disk::open(file.path(), read_only).unwrap()
    }

    fn field(config: &ConfigSpace, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        config.read(u64::try_from(offset).unwrap(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn every_field_is_where_the_kernels_header_has_it() {
        let config = ConfigSpace::new(&disk(false));
        let mut capacity = [0; 8];
        config.read(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 1000);
        assert_eq!(field(&config, offset_of!(virtio_blk_config, seg_max)), 254);
        assert_eq!(field(&config, offset_of!(virtio_blk_config, blk_size)), 512);
        assert_eq!(field(&config, offset_of!(virtio_blk_config, num_queues)) & 0xffff, 1);
        assert_eq!(field(&config, offset_of!(virtio_blk_config, max_discard_sectors)), DISCARD_SECTORS);
        assert_eq!(field(&config, offset_of!(virtio_blk_config, max_discard_seg)), DISCARD_RANGES);
        assert_eq!(field(&config, offset_of!(virtio_blk_config, discard_sector_alignment)), DISCARD_ALIGNMENT);
        assert_eq!(field(&config, offset_of!(virtio_blk_config, max_write_zeroes_sectors)), WRITE_ZEROES_SECTORS);
        assert_eq!(field(&config, offset_of!(virtio_blk_config, max_write_zeroes_seg)), WRITE_ZEROES_RANGES);
        assert_eq!(field(&config, offset_of!(virtio_blk_config, write_zeroes_may_unmap)), 1);
        assert!(size_of::<virtio_blk_config>() >= LEN);
    }

    #[test]
    fn beyond_the_end_there_are_zeros() {
        let config = ConfigSpace::new(&disk(false));
        let mut bytes = [0xee; 8];
        config.read(56, &mut bytes);
        assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0]);
        for offset in [60, 1 << 20, u64::MAX] {
            let mut bytes = [0xee; 8];
            config.read(offset, &mut bytes);
            assert_eq!(bytes, [0; 8]);
        }
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_writes() {
        let disk = disk(true);
        let bits = features(&disk);
        assert_ne!(bits & 1 << VIRTIO_BLK_F_RO, 0);
        assert_eq!(bits & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES), 0);
        assert_eq!(field(&ConfigSpace::new(&disk), 36), 0);
    }
}
