// SPDX-License-Identifier: GPL-2.0-only
/*
 * packets INTERFACE COUNT
 *
 * Sends COUNT frames of all sizes, at most WINDOW on the way, and expects each one to come back once and unchanged.
 */
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define PROTOCOL 0x88b5 /* of IEEE, for experiments */
#define HEADER 14
#define MIN_SIZE 64
#define MAX_SIZE 1514
#define WINDOW 32
#define TIMEOUT_MS 10000

static unsigned char frame[MAX_SIZE];

static size_t fill(unsigned int number)
{
	size_t size = MIN_SIZE + number * 37 % (MAX_SIZE - MIN_SIZE + 1), i;

	memset(frame, 0xff, 6);
	memset(frame + 6, 2, 6);
	frame[12] = PROTOCOL >> 8;
	frame[13] = PROTOCOL & 0xff;
	memcpy(frame + HEADER, &number, sizeof(number));
	for (i = HEADER + sizeof(number); i < size; i++)
		frame[i] = number + i * 13;
	return size;
}

int main(int argc, char **argv)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(PROTOCOL) };
	unsigned int sent = 0, received = 0, wrong = 0, twice = 0, count, number;
	unsigned char back[2048];
	struct ifreq ifr = { 0 };
	bool *seen;
	int fd;

	if (argc != 3)
		return 2;
	count = atoi(argv[2]);
	seen = calloc(count, sizeof(*seen));
	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", argv[1]);
	fd = socket(AF_PACKET, SOCK_RAW, htons(PROTOCOL));
	if (fd < 0 || !seen || ioctl(fd, SIOCGIFINDEX, &ifr)) {
		printf("packets: no interface %s\n", argv[1]);
		return 1;
	}
	address.sll_ifindex = ifr.ifr_ifindex;
	if (bind(fd, (struct sockaddr *)&address, sizeof(address))) {
		perror("packets: bind");
		return 1;
	}

	while (received + wrong < count) {
		struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
		struct sockaddr_ll source;
		socklen_t source_size = sizeof(source);
		ssize_t size;

		for (; sent < count && sent < received + wrong + WINDOW; sent++) {
			size = fill(sent);
			if (send(fd, frame, size, 0) != size) {
				perror("packets: send");
				return 1;
			}
		}
		if (!poll(&poll_fd, 1, TIMEOUT_MS))
			break;
		size = recvfrom(fd, back, sizeof(back), 0, (struct sockaddr *)&source, &source_size);
		if (size < 0 || source.sll_pkttype == PACKET_OUTGOING)
			continue;
		memcpy(&number, back + HEADER, sizeof(number));
		if (number >= count || (size_t)size != fill(number) || memcmp(back, frame, size)) {
			wrong++;
		} else if (seen[number]) {
			twice++;
		} else {
			seen[number] = true;
			received++;
		}
	}
	printf("packets: sent=%u received=%u wrong=%u twice=%u\n", sent, received, wrong, twice);
	return received != count || wrong || twice;
}
