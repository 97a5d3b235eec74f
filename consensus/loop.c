/* Event loops: see loop.h. */
#include "common/err.h"

#include <pthread.h>
#include <signal.h>
#include <uv.h>

#include "common/check.h"
#include "common/mem.h"
#include "consensus/loop.h"

struct loop {
    uv_loop_t uv;
    uv_async_t async;
    uv_timer_t timer;
    pthread_t thread;
    bool started;
    void (*tick)(void *arg);
    void *arg;
    pthread_mutex_t mutex; /* guards the queue */
    struct loop_task *head, **tail;
};

static struct loop_task *tasks_take(struct loop *loop)
{
    pthread_mutex_lock(&loop->mutex);
    struct loop_task *first = loop->head;
    loop->head = NULL;
    loop->tail = &loop->head;
    pthread_mutex_unlock(&loop->mutex);
    return first;
}

static void tasks_run(struct loop *loop)
{
    struct loop_task *task = tasks_take(loop);
    while (task != NULL) {
        struct loop_task *next = task->next; /* `run` may free the task, or post it again */
        task->run(task);
        task = next;
    }
}

static void on_async(uv_async_t *async) { tasks_run(async->data); }

static void on_timer(uv_timer_t *timer)
{
    struct loop *loop = timer->data;
    loop->tick(loop->arg);
}

enum omen_err loop_new(void (*tick)(void *arg), void *arg, struct loop **loop_out, struct err *err)
{
    struct loop *loop = mem_must_calloc(1, sizeof *loop);
    loop->tick = tick;
    loop->arg = arg;
    loop->tail = &loop->head;
    if (uv_loop_init(&loop->uv) != 0) {
        mem_free(loop);
        return err_set(err, OMEN_EIO, NULL, "cannot make an event loop");
    }
    CHECK(uv_async_init(&loop->uv, &loop->async, on_async) == 0);
    CHECK(uv_timer_init(&loop->uv, &loop->timer) == 0);
    loop->async.data = loop->timer.data = loop;
    pthread_mutex_init(&loop->mutex, NULL);
    *loop_out = loop;
    return OMEN_OK;
}

static void *loop_main(void *arg)
{
    struct loop *loop = arg;
    sigset_t pipe_set;
    sigemptyset(&pipe_set);
    sigaddset(&pipe_set, SIGPIPE);
    CHECK(pthread_sigmask(SIG_BLOCK, &pipe_set, NULL) == 0);
    CHECK(uv_timer_start(&loop->timer, on_timer, LOOP_TICK_MS, LOOP_TICK_MS) == 0);
    uv_run(&loop->uv, UV_RUN_DEFAULT);
    return NULL;
}

enum omen_err loop_start(struct loop *loop, struct err *err)
{
    if (pthread_create(&loop->thread, NULL, loop_main, loop) != 0)
        return err_set(err, OMEN_ENOMEM, NULL, "cannot start an event loop's thread");
    loop->started = true;
    return OMEN_OK;
}

void loop_post(struct loop *loop, struct loop_task *task)
{
    task->next = NULL;
    pthread_mutex_lock(&loop->mutex);
    bool idle = loop->head == NULL;
    *loop->tail = task;
    loop->tail = &task->next;
    pthread_mutex_unlock(&loop->mutex);
    if (idle) CHECK(uv_async_send(&loop->async) == 0);
}

struct call {
    struct loop_task task; /* first */
    void (*run)(void *arg);
    void *arg;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool over;
};

static void call_run(struct loop_task *task)
{
    struct call *call = (struct call *)task;
    call->run(call->arg);
    pthread_mutex_lock(&call->mutex);
    call->over = true;
    pthread_cond_signal(&call->cond);
    pthread_mutex_unlock(&call->mutex);
}

void loop_call(struct loop *loop, void (*run)(void *arg), void *arg)
{
    CHECK(!loop_is_current(loop));
    struct call call = { .task = { .run = call_run }, .run = run, .arg = arg };
    pthread_mutex_init(&call.mutex, NULL);
    pthread_cond_init(&call.cond, NULL);
    loop_post(loop, &call.task);
    pthread_mutex_lock(&call.mutex);
    while (!call.over) pthread_cond_wait(&call.cond, &call.mutex);
    pthread_mutex_unlock(&call.mutex);
    pthread_cond_destroy(&call.cond);
    pthread_mutex_destroy(&call.mutex);
}

bool loop_is_current(const struct loop *loop)
{
    return loop->started && pthread_equal(pthread_self(), loop->thread);
}

bool loop_started(const struct loop *loop) { return loop->started; }

static void loop_end(void *arg)
{
    struct loop *loop = arg;
    uv_close((uv_handle_t *)&loop->async, NULL);
    uv_close((uv_handle_t *)&loop->timer, NULL);
}

void loop_stop(struct loop *loop)
{
    if (loop == NULL) return;
    if (loop->started) {
        loop_call(loop, loop_end, loop);
        pthread_join(loop->thread, NULL);
    } else {
        loop_end(loop);
        uv_run(&loop->uv, UV_RUN_DEFAULT);
    }
    CHECK(uv_loop_close(&loop->uv) == 0);
    CHECK(loop->head == NULL);
    pthread_mutex_destroy(&loop->mutex);
    mem_free(loop);
}

void *loop_uv(struct loop *loop) { return &loop->uv; }
