/* SPDX-License-Identifier: GPL-2.0-only */
/* QEMU's edu behind VFIO, for the programs that have it make DMA. die() is the program's own. */
#ifndef GUEST_EDU_H
#define GUEST_EDU_H

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <linux/vfio.h>

#define PAGE 4096UL
#define MIB (1UL << 20)
#define EDU_BUFFER 0x40000
/* edu's buffer is a page, but QEMU 7.2 ends itself when a copy reaches its last byte. */
#define EDU_SIZE (PAGE - 8)

#define RUN 1
#define TO_RAM 2

static void die(const char *format, ...);

static int xopen(const char *path)
{
	int fd = open(path, O_RDWR);

	if (fd < 0)
		die("open %s", path);
	return fd;
}

static int open_group(const char *format, const char *name)
{
	char path[128], link[256];
	ssize_t len;

	snprintf(path, sizeof(path), format, name);
	len = readlink(path, link, sizeof(link) - 1);
	if (len < 0)
		die("readlink %s", path);
	link[len] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%s", strrchr(link, '/') + 1);
	return xopen(path);
}

static int open_cdev(const char *bdf)
{
	struct dirent *entry;
	char path[300];
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", bdf);
	dir = opendir(path);
	if (!dir)
		die("opendir %s", path);
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			snprintf(path, sizeof(path), "/dev/vfio/devices/%s", entry->d_name);
	closedir(dir);
	return xopen(path);
}

static volatile uint8_t *map_bar(int device, size_t *size)
{
	struct vfio_region_info region = { .argsz = sizeof(region), .index = VFIO_PCI_BAR0_REGION_INDEX };
	struct vfio_region_info config = { .argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	uint16_t command;
	void *bar;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) || ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config))
		die("region info");
	*size = region.size;
	bar = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, region.offset);
	if (bar == MAP_FAILED)
		die("map BAR 0");
	/* Command register: memory space and bus master. */
	if (pread(device, &command, 2, config.offset + 4) != 2)
		die("read the command register");
	command |= 0x6;
	if (pwrite(device, &command, 2, config.offset + 4) != 2)
		die("write the command register");
	return bar;
}

/* Copies between IOVA and OFFSET in edu's buffer. */
static void edu_copy(volatile uint8_t *bar, uint64_t iova, unsigned int offset, size_t size, uint64_t direction)
{
	const struct timespec tick = { .tv_nsec = 5000000 };
	int tries = 2000;

	*(volatile uint64_t *)(bar + 0x80) = direction == TO_RAM ? EDU_BUFFER + offset : iova;
	*(volatile uint64_t *)(bar + 0x88) = direction == TO_RAM ? iova : EDU_BUFFER + offset;
	*(volatile uint64_t *)(bar + 0x90) = size;
	*(volatile uint64_t *)(bar + 0x98) = RUN | direction;
	while (*(volatile uint64_t *)(bar + 0x98) & RUN) {
		nanosleep(&tick, NULL);
		if (!--tries)
			die("edu's DMA does not end");
	}
}

#endif
