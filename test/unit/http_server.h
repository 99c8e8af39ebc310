/*
 * http_server.h
 *	  A loopback HTTP/1.1 server inside the test's process, which answers by
 *	  rules and can misbehave in every way that a network can.
 *
 * Each connection has a thread of its own; rules and the log are guarded by
 * one mutex.  Requests are matched by method and by a part of their target or
 * body; the first rule with uses left decides.  "$ORIGIN" in a reply becomes
 * the server's own address.
 */
#ifndef KC_TEST_HTTP_SERVER_H
#define KC_TEST_HTTP_SERVER_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tap.h"

typedef enum ServerAction
{
	SERVER_REPLY,				/* the default */
	SERVER_RESET,				/* RST after the request was read */
	SERVER_CLOSE,				/* FIN after the request was read, no answer */
	SERVER_RESET_EARLY,			/* RST after the head, the body unread */
	SERVER_STALL,				/* read the request, never answer */
	SERVER_STALL_EARLY,			/* read the head, not the body, never answer */
	SERVER_REPLY_EARLY,			/* reply after the head, the body unread, then FIN */
	SERVER_TRUNCATE,			/* half of the body, then FIN */
	SERVER_DRIP,				/* a byte every 50 ms */
	SERVER_ENDLESS,				/* status and headers, then bytes without end */
	SERVER_LAST_ON_CONNECTION	/* a good reply, but the next request on this
								 * connection gets a RST after it was read */
} ServerAction;

typedef struct ServerRule
{
	const char *method;			/* NULL: any */
	const char *target;			/* part of it; NULL: any */
	const char *body_part;		/* NULL: any */
	int			times;			/* 0: always */
	int			skip;			/* so many matches go to the rules behind */
	ServerAction action;
	int			status;			/* 0: 200 */
	const char *headers;		/* "Name: value\r\n"..., or NULL */
	const char *body;
	size_t		body_len;		/* 0: strlen(body) */
	int			used;
} ServerRule;

typedef struct ServerRequest
{
	int			connection;		/* from 1 */
	char	   *method;
	char	   *target;
	char	   *head;			/* all header lines */
	char	   *body;
	size_t		body_len;
	int			status;			/* of the reply; 0: none */
} ServerRequest;

#define SERVER_MAX_RULES 64
#define SERVER_MAX_REQUESTS 1024
#define SERVER_MAX_CONNECTIONS 512

typedef struct Server
{
	int			listen_fd;
	int			port;
	char		origin[64];
	int			stop_pipe[2];
	pthread_t	acceptor;
	pthread_t	threads[SERVER_MAX_CONNECTIONS];
	int			nconnections;
	pthread_mutex_t lock;
	ServerRule	rules[SERVER_MAX_RULES];
	int			nrules;
	ServerRequest requests[SERVER_MAX_REQUESTS];
	int			nrequests;
	int			max_open_requests;	/* requests in work at the same time */
	int			open_requests;
} Server;

typedef struct ServerConnection
{
	Server	   *server;
	int			fd;
	int			number;
	bool		doomed;			/* SERVER_LAST_ON_CONNECTION was done */
	bool		head_only;		/* the request is a HEAD: tell the length, send nothing */
	char		buffer[65536];
	size_t		have;
} ServerConnection;

/* ---- sockets ---- */

/* False: the peer has gone, or the server stops. */
static bool
server_wait(ServerConnection *c, short events, int timeout_ms)
{
	struct pollfd fds[2] = {{c->fd, events, 0}, {c->server->stop_pipe[0], POLLIN, 0}};
	int			n = poll(fds, 2, timeout_ms);

	return n > 0 && fds[1].revents == 0;
}

static bool
server_fill(ServerConnection *c)
{
	ssize_t		n;

	if (!server_wait(c, POLLIN, -1))
		return false;
	n = recv(c->fd, c->buffer + c->have, sizeof(c->buffer) - c->have, 0);
	if (n <= 0)
		return false;
	c->have += (size_t) n;
	return true;
}

static bool
server_send(ServerConnection *c, const char *data, size_t len)
{
	while (len > 0)
	{
		ssize_t		n;

		if (!server_wait(c, POLLOUT, -1))
			return false;
		n = send(c->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n <= 0)
			return false;
		data += n;
		len -= (size_t) n;
	}
	return true;
}

static void
server_reset(ServerConnection *c)
{
	struct linger hard = {1, 0};

	(void) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
}

/* Until the peer closes or the server stops. */
static void
server_stall(ServerConnection *c)
{
	struct pollfd fds[2] = {{c->fd, POLLRDHUP, 0}, {c->server->stop_pipe[0], POLLIN, 0}};

	(void) poll(fds, 2, -1);
}

/* ---- requests ---- */

static char *
server_copy(const char *data, size_t len)
{
	char	   *copy = malloc(len + 1);

	must(copy != NULL);
	if (len > 0)
		memcpy(copy, data, len);
	copy[len] = '\0';
	return copy;
}

/* The value of a header of a logged request, in a static buffer; NULL: none. */
static TAP_UNUSED const char *
server_header(const ServerRequest *request, const char *name)
{
	static char value[4096];
	size_t		len = strlen(name);

	for (const char *line = request->head; line != NULL && *line != '\0';)
	{
		const char *end = strstr(line, "\r\n");

		if (end == NULL)
			end = line + strlen(line);
		if (strncasecmp(line, name, len) == 0 && line[len] == ':')
		{
			const char *start = line + len + 1;

			while (*start == ' ')
				start++;
			snprintf(value, sizeof(value), "%.*s", (int) (end - start), start);
			return value;
		}
		line = *end == '\0' ? NULL : end + 2;
	}
	return NULL;
}

static bool
server_read_head(ServerConnection *c, ServerRequest *request)
{
	char	   *end;
	char	   *blank;
	char	   *second;

	memset(request, 0, sizeof(*request));
	while ((end = memmem(c->buffer, c->have, "\r\n\r\n", 4)) == NULL)
	{
		if (c->have == sizeof(c->buffer) || !server_fill(c))
			return false;
	}
	blank = memchr(c->buffer, ' ', c->have);
	second = blank == NULL ? NULL : memchr(blank + 1, ' ', (size_t) (end - blank - 1));
	if (second == NULL)
		return false;
	request->connection = c->number;
	request->method = server_copy(c->buffer, (size_t) (blank - c->buffer));
	request->target = server_copy(blank + 1, (size_t) (second - blank - 1));
	request->head = server_copy(c->buffer, (size_t) (end - c->buffer) + 2);
	end += 4;
	c->have -= (size_t) (end - c->buffer);
	memmove(c->buffer, end, c->have);
	return true;
}

static size_t
server_content_length(const ServerRequest *request)
{
	size_t		len = 0;
	const char *line = strcasestr(request->head, "\r\ncontent-length:");

	if (line != NULL)
		len = strtoul(line + strlen("\r\ncontent-length:"), NULL, 10);
	return len;
}

static bool
server_read_body(ServerConnection *c, ServerRequest *request)
{
	size_t		want = server_content_length(request);

	request->body = malloc(want + 1);
	must(request->body != NULL);
	while (request->body_len < want)
	{
		size_t		n = want - request->body_len;

		if (c->have == 0 && !server_fill(c))
			return false;
		if (n > c->have)
			n = c->have;
		memcpy(request->body + request->body_len, c->buffer, n);
		request->body_len += n;
		c->have -= n;
		memmove(c->buffer, c->buffer + n, c->have);
	}
	request->body[request->body_len] = '\0';
	return true;
}

static void
server_free_request(ServerRequest *request)
{
	free(request->method);
	free(request->target);
	free(request->head);
	free(request->body);
}

/* ---- rules ---- */

static bool
server_rule_matches(const ServerRule *rule, const ServerRequest *request)
{
	if (rule->method != NULL && strcmp(rule->method, request->method) != 0)
		return false;
	if (rule->target != NULL && strstr(request->target, rule->target) == NULL)
		return false;
	return rule->body_part == NULL
		|| (request->body != NULL
			&& memmem(request->body, request->body_len, rule->body_part, strlen(rule->body_part)) != NULL);
}

static ServerRule
server_choose(Server *server, const ServerRequest *request)
{
	ServerRule	chosen = {.status = 404,.body = "no rule"};

	pthread_mutex_lock(&server->lock);
	for (int i = 0; i < server->nrules; i++)
	{
		ServerRule *rule = &server->rules[i];

		if (!server_rule_matches(rule, request))
			continue;
		rule->used++;
		if (rule->used <= rule->skip || (rule->times > 0 && rule->used > rule->skip + rule->times))
			continue;
		chosen = *rule;
		break;
	}
	pthread_mutex_unlock(&server->lock);
	return chosen;
}

/* Does any rule for this head act before the body is read? */
static bool
server_acts_early(Server *server, const ServerRequest *request, ServerRule *chosen)
{
	bool		early = false;

	pthread_mutex_lock(&server->lock);
	for (int i = 0; i < server->nrules && !early; i++)
	{
		ServerRule *rule = &server->rules[i];

		if ((rule->action != SERVER_RESET_EARLY && rule->action != SERVER_STALL_EARLY
			 && rule->action != SERVER_REPLY_EARLY)
			|| !server_rule_matches(rule, request))
			continue;
		rule->used++;
		if (rule->used <= rule->skip || (rule->times > 0 && rule->used > rule->skip + rule->times))
			continue;
		*chosen = *rule;
		early = true;
	}
	pthread_mutex_unlock(&server->lock);
	return early;
}

/* Takes the request over. */
static int
server_log(Server *server, ServerRequest *request, int status)
{
	int			index;

	pthread_mutex_lock(&server->lock);
	index = server->nrequests;
	must(index < SERVER_MAX_REQUESTS);
	request->status = status;
	server->requests[server->nrequests++] = *request;
	pthread_mutex_unlock(&server->lock);
	return index;
}

/* ---- replies ---- */

static char *
server_expand(Server *server, const char *text, size_t len, size_t *out_len)
{
	static const char mark[] = "$ORIGIN";
	size_t		mark_len = sizeof(mark) - 1;
	char	   *out = malloc(len * 10 + 1);
	size_t		n = 0;

	must(out != NULL);
	for (size_t i = 0; i < len;)
	{
		if (len - i >= mark_len && memcmp(text + i, mark, mark_len) == 0)
		{
			n += (size_t) sprintf(out + n, "%s", server->origin);
			i += mark_len;
		}
		else
			out[n++] = text[i++];
	}
	out[n] = '\0';
	*out_len = n;
	return out;
}

static bool
server_drip(ServerConnection *c, const char *data, size_t len)
{
	for (size_t i = 0; i < len; i++)
	{
		struct pollfd stop = {c->server->stop_pipe[0], POLLIN, 0};

		if (poll(&stop, 1, 50) != 0 || !server_send(c, data + i, 1))
			return false;
	}
	return true;
}

/* False: the connection is over. */
static bool
server_reply(ServerConnection *c, const ServerRule *rule)
{
	const char *text = rule->body != NULL ? rule->body : "";
	size_t		len;
	char	   *body = server_expand(c->server, text,
									 rule->body_len > 0 ? rule->body_len : strlen(text), &len);
	char		head[8192];
	int			status = rule->status != 0 ? rule->status : 200;
	int			n;
	bool		good;

	if (rule->action == SERVER_ENDLESS)
		n = snprintf(head, sizeof(head), "HTTP/1.1 %d Status\r\nConnection: close\r\n%s\r\n", status,
					 rule->headers ? rule->headers : "");
	else
		n = snprintf(head, sizeof(head), "HTTP/1.1 %d Status\r\nContent-Length: %zu\r\n%s\r\n", status,
					 len, rule->headers ? rule->headers : "");
	must(n > 0 && (size_t) n < sizeof(head));
	good = server_send(c, head, (size_t) n);
	if (rule->action == SERVER_TRUNCATE)
	{
		(void) server_send(c, body, len / 2);
		good = false;
	}
	else if (rule->action == SERVER_DRIP)
		good = good && server_drip(c, body, len);
	else if (rule->action == SERVER_ENDLESS)
	{
		static const char noise[4096] = "endless";

		while (good)
			good = server_send(c, noise, sizeof(noise));
	}
	else if (!c->head_only)
		good = good && server_send(c, body, len);
	free(body);
	return good;
}

static bool
server_act(ServerConnection *c, const ServerRule *rule)
{
	switch (rule->action)
	{
		case SERVER_RESET:
		case SERVER_RESET_EARLY:
			server_reset(c);
			return false;
		case SERVER_CLOSE:
			return false;
		case SERVER_STALL:
		case SERVER_STALL_EARLY:
			server_stall(c);
			return false;
		case SERVER_REPLY_EARLY:
			(void) server_reply(c, rule);
			(void) shutdown(c->fd, SHUT_WR);
			c->have = 0;
			while (server_fill(c))
				c->have = 0;
			return false;
		case SERVER_LAST_ON_CONNECTION:
			c->doomed = true;
			return server_reply(c, rule);
		default:
			return server_reply(c, rule);
	}
}

static void
server_count_open(Server *server, int change)
{
	pthread_mutex_lock(&server->lock);
	server->open_requests += change;
	if (server->open_requests > server->max_open_requests)
		server->max_open_requests = server->open_requests;
	pthread_mutex_unlock(&server->lock);
}

/* One request; false: the connection is over. */
static bool
server_serve(ServerConnection *c)
{
	ServerRequest request;
	ServerRule	rule;
	bool		go_on;

	if (!server_read_head(c, &request))
		return false;
	if (server_acts_early(c->server, &request, &rule))
	{
		server_log(c->server, &request, 0);
		return server_act(c, &rule);
	}
	server_count_open(c->server, 1);
	if (!server_read_body(c, &request))
	{
		server_free_request(&request);
		server_count_open(c->server, -1);
		return false;
	}
	c->head_only = strcmp(request.method, "HEAD") == 0;
	if (c->doomed)
		rule = (ServerRule) {.action = SERVER_RESET};
	else
		rule = server_choose(c->server, &request);
	server_log(c->server, &request, rule.action != SERVER_REPLY && rule.action != SERVER_DRIP ? 0
			   : rule.status != 0 ? rule.status : 200);
	go_on = server_act(c, &rule);
	server_count_open(c->server, -1);
	return go_on;
}

static void *
server_connection_main(void *arg)
{
	ServerConnection *c = arg;

	while (server_serve(c))
		;
	close(c->fd);
	free(c);
	return NULL;
}

static void *
server_acceptor_main(void *arg)
{
	Server	   *server = arg;

	for (;;)
	{
		struct pollfd fds[2] = {{server->listen_fd, POLLIN, 0}, {server->stop_pipe[0], POLLIN, 0}};
		ServerConnection *c;
		int			fd;
		int			on = 1;

		if (poll(fds, 2, -1) < 0 || fds[1].revents != 0)
			return NULL;
		fd = accept(server->listen_fd, NULL, NULL);
		if (fd < 0)
			continue;
		(void) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		c = calloc(1, sizeof(*c));
		must(c != NULL);
		c->server = server;
		c->fd = fd;
		pthread_mutex_lock(&server->lock);
		must(server->nconnections < SERVER_MAX_CONNECTIONS);
		c->number = server->nconnections + 1;
		must(pthread_create(&server->threads[server->nconnections], NULL,
							server_connection_main, c) == 0);
		server->nconnections++;
		pthread_mutex_unlock(&server->lock);
	}
}

/* ---- for the test ---- */

static void TAP_UNUSED
server_start(Server *server)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t	len = sizeof(address);

	signal(SIGPIPE, SIG_IGN);
	memset(server, 0, sizeof(*server));
	pthread_mutex_init(&server->lock, NULL);
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	server->listen_fd = socket(AF_INET, SOCK_STREAM, 0);
	must(server->listen_fd >= 0);
	must(bind(server->listen_fd, (struct sockaddr *) &address, len) == 0);
	must(listen(server->listen_fd, 128) == 0);
	must(getsockname(server->listen_fd, (struct sockaddr *) &address, &len) == 0);
	server->port = ntohs(address.sin_port);
	snprintf(server->origin, sizeof(server->origin), "http://127.0.0.1:%d", server->port);
	must(pipe(server->stop_pipe) == 0);
	must(pthread_create(&server->acceptor, NULL, server_acceptor_main, server) == 0);
}

static void TAP_UNUSED
server_stop(Server *server)
{
	must(write(server->stop_pipe[1], "x", 1) == 1);
	pthread_join(server->acceptor, NULL);
	for (int i = 0; i < server->nconnections; i++)
		pthread_join(server->threads[i], NULL);
	for (int i = 0; i < server->nrequests; i++)
		server_free_request(&server->requests[i]);
	close(server->listen_fd);
	close(server->stop_pipe[0]);
	close(server->stop_pipe[1]);
	pthread_mutex_destroy(&server->lock);
}

static void TAP_UNUSED
server_rule(Server *server, ServerRule rule)
{
	pthread_mutex_lock(&server->lock);
	must(server->nrules < SERVER_MAX_RULES);
	server->rules[server->nrules++] = rule;
	pthread_mutex_unlock(&server->lock);
}

/* Before all others. */
static void TAP_UNUSED
server_rule_first(Server *server, ServerRule rule)
{
	pthread_mutex_lock(&server->lock);
	must(server->nrules < SERVER_MAX_RULES);
	memmove(server->rules + 1, server->rules, (size_t) server->nrules * sizeof(ServerRule));
	server->rules[0] = rule;
	server->nrules++;
	pthread_mutex_unlock(&server->lock);
}

/* Forget rules and log. */
static void TAP_UNUSED
server_clear(Server *server)
{
	pthread_mutex_lock(&server->lock);
	server->nrules = 0;
	for (int i = 0; i < server->nrequests; i++)
		server_free_request(&server->requests[i]);
	server->nrequests = 0;
	server->max_open_requests = 0;
	pthread_mutex_unlock(&server->lock);
}

/* The n-th logged request (from 0) that matches; NULL: there is none. */
static TAP_UNUSED const ServerRequest *
server_nth(Server *server, const char *method, const char *target, int n)
{
	const ServerRule like = {.method = method,.target = target};
	const ServerRequest *found = NULL;

	pthread_mutex_lock(&server->lock);
	for (int i = 0; i < server->nrequests && found == NULL; i++)
	{
		if (server_rule_matches(&like, &server->requests[i]) && n-- == 0)
			found = &server->requests[i];
	}
	pthread_mutex_unlock(&server->lock);
	return found;
}

static int TAP_UNUSED
server_count(Server *server, const char *method, const char *target)
{
	int			n = 0;

	while (server_nth(server, method, target, n) != NULL)
		n++;
	return n;
}

#endif							/* KC_TEST_HTTP_SERVER_H */
