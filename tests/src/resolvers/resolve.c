/* What this program's C library makes of a name: its canonical name and its addresses, or why there
 * are none. Built with several libraries, so that their resolvers can be compared. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    struct addrinfo hints, *list, *one;
    int error;

    if (argc != 2) {
        fprintf(stderr, "usage: resolve NAME\n");
        return 2;
    }
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_CANONNAME;
    error = getaddrinfo(argv[1], NULL, &hints, &list);
    if (error == EAI_NONAME) {
        printf("no such name\n");
        return 0;
    }
    if (error) {
        fprintf(stderr, "%s: %s\n", argv[1], gai_strerror(error));
        return 1;
    }
    printf("name %s\n", list->ai_canonname ? list->ai_canonname : "");
    for (one = list; one; one = one->ai_next) {
        char text[INET6_ADDRSTRLEN] = "";
        const void *addr = one->ai_family == AF_INET
            ? (const void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr
            : (const void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
        inet_ntop(one->ai_family, addr, text, sizeof text);
        printf("%s\n", text);
    }
    freeaddrinfo(list);
    return 0;
}
