; Moves windows of a map into the rows of a batch. `loaders/compiled.py` compiles it by llvmlite.
;
; A job is 16 words of 8 bytes:
;    0 address of the map      1 last element that a window may begin with
;    2 address of the elements (int64) that windows begin with        3 number of windows
;    4 bytes of an element     5 bytes of a window    6 address of the rows    7 rows of a ticket
;    8 address of the elements (int64) that picks of a window are counted from
;    9 address of their offsets (int64)     10 number of offsets; 0: nothing is picked
;   11, 12 lowest and highest element to count from     13 address of what is picked, 4 bytes each
;   14 address of bytes to set to 1          15 number of them for each window
;
; Two threads share a job by tickets: each takes the next few rows, so that neither waits for the
; other to come, only for the rows that the other is at when all are given out. Their state lies in
; cache lines of 8 words:
;    0 next row to be given out; CLOSED or more: none       8 threads that may be at a row
;   16 whether the second thread sleeps      24 whether it shall end     32 the job
;   48 the semaphore that it sleeps on

declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare i64 @llvm.smin.i64(i64, i64)
declare i32 @sem_wait(ptr)
declare i32 @sem_post(ptr)
declare i32 @sched_yield()

; Copies all of a job; returns the first window that is not inside of the map, or -1.
define i64 @copy(ptr %job) {
  %bad = call i64 @check(ptr %job)
  %sound = icmp slt i64 %bad, 0
  br i1 %sound, label %move, label %end
move:
  %n_at = getelementptr i64, ptr %job, i64 3
  %n = load i64, ptr %n_at
  call void @rows(ptr %job, i64 0, i64 %n)
  br label %end
end:
  ret i64 %bad
}

define internal i64 @check(ptr %job) {
entry:
  %last_at = getelementptr i64, ptr %job, i64 1
  %first_at = getelementptr i64, ptr %job, i64 2
  %n_at = getelementptr i64, ptr %job, i64 3
  %origin_at = getelementptr i64, ptr %job, i64 8
  %picks_at = getelementptr i64, ptr %job, i64 10
  %low_at = getelementptr i64, ptr %job, i64 11
  %high_at = getelementptr i64, ptr %job, i64 12
  %last = load i64, ptr %last_at
  %first = load ptr, ptr %first_at
  %n = load i64, ptr %n_at
  %origin = load ptr, ptr %origin_at
  %n_picks = load i64, ptr %picks_at
  %low = load i64, ptr %low_at
  %high = load i64, ptr %high_at
  %span = sub i64 %high, %low
  %picks = icmp ne i64 %n_picks, 0
  %room = icmp sge i64 %last, 0
  br i1 %room, label %window, label %bad
window:
  %i = phi i64 [ 0, %entry ], [ %i2, %sound ]
  %at = getelementptr i64, ptr %first, i64 %i
  %start = load i64, ptr %at
  %inside = icmp ule i64 %start, %last
  br i1 %inside, label %pick, label %bad
pick:
  br i1 %picks, label %picked, label %sound
picked:
  %from = getelementptr i64, ptr %origin, i64 %i
  %element = load i64, ptr %from
  %above = sub i64 %element, %low
  %reaches = icmp ule i64 %above, %span
  %spans = icmp sge i64 %span, 0
  %both = and i1 %reaches, %spans
  br i1 %both, label %sound, label %bad
sound:
  %i2 = add i64 %i, 1
  %more = icmp slt i64 %i2, %n
  br i1 %more, label %window, label %good
bad:
  %which = phi i64 [ 0, %entry ], [ %i, %window ], [ %i, %picked ]
  ret i64 %which
good:
  ret i64 -1
}

; Windows [begin, end) of a job. A window is moved in four vectors of 32 bytes at a time, the rest
; of it by memcpy; meanwhile a line per KiB of the next one is fetched, as far as 16 KiB.
define internal void @rows(ptr %job, i64 %begin, i64 %end) {
entry:
  %first_at = getelementptr i64, ptr %job, i64 2
  %item_at = getelementptr i64, ptr %job, i64 4
  %width_at = getelementptr i64, ptr %job, i64 5
  %out_at = getelementptr i64, ptr %job, i64 6
  %origin_at = getelementptr i64, ptr %job, i64 8
  %offsets_at = getelementptr i64, ptr %job, i64 9
  %picks_at = getelementptr i64, ptr %job, i64 10
  %picked_at = getelementptr i64, ptr %job, i64 13
  %ones_at = getelementptr i64, ptr %job, i64 14
  %n_ones_at = getelementptr i64, ptr %job, i64 15
  %map = load ptr, ptr %job
  %first = load ptr, ptr %first_at
  %item = load i64, ptr %item_at
  %width = load i64, ptr %width_at
  %out = load ptr, ptr %out_at
  %origin = load ptr, ptr %origin_at
  %offsets = load ptr, ptr %offsets_at
  %n_picks = load i64, ptr %picks_at
  %picked = load ptr, ptr %picked_at
  %ones = load ptr, ptr %ones_at
  %n_ones = load i64, ptr %n_ones_at
  %picks = icmp sgt i64 %n_picks, 0
  %wide = and i64 %width, -128
  %rest = and i64 %width, 127
  %some = icmp ne i64 %wide, 0
  %reach = call i64 @llvm.smin.i64(i64 %width, i64 16384)
  %any = icmp slt i64 %begin, %end
  br i1 %any, label %row, label %done
row:
  %r = phi i64 [ %begin, %entry ], [ %r2, %next_row ]
  %r2 = add i64 %r, 1
  %done_bytes = mul i64 %r, %width
  %to = getelementptr i8, ptr %out, i64 %done_bytes
  %here = getelementptr i64, ptr %first, i64 %r
  %element = load i64, ptr %here
  %place = mul i64 %element, %item
  %from = getelementptr i8, ptr %map, i64 %place
  %left = icmp slt i64 %r2, %end
  br i1 %left, label %next, label %move
next:
  %there = getelementptr i64, ptr %first, i64 %r2
  %element2 = load i64, ptr %there
  %place2 = mul i64 %element2, %item
  %from2 = getelementptr i8, ptr %map, i64 %place2
  br label %fetch
fetch:
  %k = phi i64 [ 0, %next ], [ %k2, %fetch ]
  %line = getelementptr i8, ptr %from2, i64 %k
  call void @llvm.prefetch.p0(ptr %line, i32 0, i32 1, i32 1)
  %k2 = add i64 %k, 1024
  %nearer = icmp slt i64 %k2, %reach
  br i1 %nearer, label %fetch, label %move
move:
  br i1 %some, label %vectors, label %tail
vectors:
  %c = phi i64 [ 0, %move ], [ %c2, %vectors ]
  %s0 = getelementptr i8, ptr %from, i64 %c
  %s1 = getelementptr i8, ptr %s0, i64 32
  %s2 = getelementptr i8, ptr %s0, i64 64
  %s3 = getelementptr i8, ptr %s0, i64 96
  %d0 = getelementptr i8, ptr %to, i64 %c
  %d1 = getelementptr i8, ptr %d0, i64 32
  %d2 = getelementptr i8, ptr %d0, i64 64
  %d3 = getelementptr i8, ptr %d0, i64 96
  %v0 = load <32 x i8>, ptr %s0, align 1
  %v1 = load <32 x i8>, ptr %s1, align 1
  %v2 = load <32 x i8>, ptr %s2, align 1
  %v3 = load <32 x i8>, ptr %s3, align 1
  store <32 x i8> %v0, ptr %d0, align 1
  store <32 x i8> %v1, ptr %d1, align 1
  store <32 x i8> %v2, ptr %d2, align 1
  store <32 x i8> %v3, ptr %d3, align 1
  %c2 = add i64 %c, 128
  %more = icmp slt i64 %c2, %wide
  br i1 %more, label %vectors, label %tail
tail:
  %from3 = getelementptr i8, ptr %from, i64 %wide
  %to3 = getelementptr i8, ptr %to, i64 %wide
  call void @llvm.memcpy.p0.p0.i64(ptr %to3, ptr %from3, i64 %rest, i1 false)
  %ones_done = mul i64 %r, %n_ones
  %ones_here = getelementptr i8, ptr %ones, i64 %ones_done
  call void @llvm.memset.p0.i64(ptr %ones_here, i8 1, i64 %n_ones, i1 false)
  br i1 %picks, label %picking, label %next_row
picking:
  %origin_here = getelementptr i64, ptr %origin, i64 %r
  %origin_element = load i64, ptr %origin_here
  %picks_done = mul i64 %r, %n_picks
  %picked_here = getelementptr i32, ptr %picked, i64 %picks_done
  br label %pick
pick:
  %p = phi i64 [ 0, %picking ], [ %p2, %pick ]
  %offset_here = getelementptr i64, ptr %offsets, i64 %p
  %offset = load i64, ptr %offset_here
  %chosen = add i64 %origin_element, %offset
  %chosen_here = getelementptr i32, ptr %map, i64 %chosen
  %value = load i32, ptr %chosen_here, align 1
  %value_to = getelementptr i32, ptr %picked_here, i64 %p
  store i32 %value, ptr %value_to, align 1
  %p2 = add i64 %p, 1
  %more_picks = icmp slt i64 %p2, %n_picks
  br i1 %more_picks, label %pick, label %next_row
next_row:
  br i1 %left, label %row, label %done
done:
  ret void
}

; Gives a job to the second thread as well; nobody may be at another one. Returns what @copy does.
define i64 @begin(ptr %state, ptr %job) {
  %bad = call i64 @check(ptr %job)
  %sound = icmp slt i64 %bad, 0
  br i1 %sound, label %publish, label %end
publish:
  %mine = getelementptr i64, ptr %state, i64 32
  call void @llvm.memcpy.p0.p0.i64(ptr %mine, ptr %job, i64 128, i1 false)
  store atomic i64 0, ptr %state seq_cst, align 8
  %asleep_at = getelementptr i64, ptr %state, i64 16
  %asleep = load atomic i64, ptr %asleep_at seq_cst, align 8
  %sleeps = icmp ne i64 %asleep, 0
  br i1 %sleeps, label %wake, label %end
wake:
  %was = atomicrmw xchg ptr %asleep_at, i64 0 seq_cst
  %slept = icmp ne i64 %was, 0
  br i1 %slept, label %post, label %end
post:
  %semaphore = getelementptr i64, ptr %state, i64 48
  %posted = call i32 @sem_post(ptr %semaphore)
  br label %end
end:
  ret i64 %bad
}

; Copies what is left of the job, and returns when all of it is done.
define void @finish(ptr %state) {
  call void @share(ptr %state)
  call void @cancel(ptr %state)
  ret void
}

; Gives out no more rows, and returns when nobody is at one.
define void @cancel(ptr %state) {
entry:
  %was = atomicrmw xchg ptr %state, i64 CLOSED seq_cst
  %active_at = getelementptr i64, ptr %state, i64 8
  br label %wait
wait:
  %turns = phi i64 [ 0, %entry ], [ %turns2, %again ]
  %active = load atomic i64, ptr %active_at seq_cst, align 8
  %none = icmp eq i64 %active, 0
  br i1 %none, label %end, label %still
still:
  call void @pause()
  %turns2 = add i64 %turns, 1
  %long = icmp sgt i64 %turns2, 4096
  br i1 %long, label %yield, label %again
yield:
  %yielded = call i32 @sched_yield()
  br label %again
again:
  br label %wait
end:
  ret void
}

; Whether rows of the job are left that nobody is at: 1 or 0.
define i64 @is_open(ptr %state) {
  %next = load atomic i64, ptr %state seq_cst, align 8
  %n_at = getelementptr i64, ptr %state, i64 35
  %n = load i64, ptr %n_at
  %open = icmp slt i64 %next, %n
  %word = zext i1 %open to i64
  ret i64 %word
}

define internal void @share(ptr %state) {
entry:
  %job = getelementptr i64, ptr %state, i64 32
  %n_at = getelementptr i64, ptr %state, i64 35
  %size_at = getelementptr i64, ptr %state, i64 39
  %size = load i64, ptr %size_at
  br label %ticket
ticket:
  %begin = atomicrmw add ptr %state, i64 %size seq_cst
  %closed = icmp sge i64 %begin, CLOSED
  br i1 %closed, label %end, label %given
given:
  %n = load i64, ptr %n_at
  %inside = icmp slt i64 %begin, %n
  br i1 %inside, label %move, label %end
move:
  %behind = add i64 %begin, %size
  %to = call i64 @llvm.smin.i64(i64 %behind, i64 %n)
  call void @rows(ptr %job, i64 %begin, i64 %to)
  br label %ticket
end:
  ret void
}

; The second thread. Between jobs it looks for the next for a while (100 us and more), then sleeps.
define void @serve(ptr %state) {
entry:
  %active_at = getelementptr i64, ptr %state, i64 8
  %asleep_at = getelementptr i64, ptr %state, i64 16
  %stop_at = getelementptr i64, ptr %state, i64 24
  %n_at = getelementptr i64, ptr %state, i64 35
  %semaphore = getelementptr i64, ptr %state, i64 48
  br label %look
look:
  %looked = phi i64 [ 0, %entry ], [ %looked2, %idle ], [ 0, %woken ], [ 0, %enter ]
  %stop = load atomic i64, ptr %stop_at seq_cst, align 8
  %stopped = icmp ne i64 %stop, 0
  br i1 %stopped, label %end, label %see
see:
  %next = load atomic i64, ptr %state seq_cst, align 8
  %n = load i64, ptr %n_at
  %open = icmp slt i64 %next, %n
  br i1 %open, label %enter, label %tired
tired:
  %long = icmp sgt i64 %looked, 10000
  br i1 %long, label %sleep, label %idle
idle:
  call void @pause()
  %looked2 = add i64 %looked, 1
  br label %look
sleep:
  store atomic i64 1, ptr %asleep_at seq_cst, align 8
  %next2 = load atomic i64, ptr %state seq_cst, align 8
  %stop2 = load atomic i64, ptr %stop_at seq_cst, align 8
  %n2 = load i64, ptr %n_at
  %closed2 = icmp sge i64 %next2, %n2
  %going = icmp eq i64 %stop2, 0
  %nothing = and i1 %closed2, %going
  br i1 %nothing, label %wait, label %woken
wait:
  %waited = call i32 @sem_wait(ptr %semaphore)
  br label %woken
woken:
  store atomic i64 0, ptr %asleep_at seq_cst, align 8
  br label %look
enter:
  %before = atomicrmw add ptr %active_at, i64 1 seq_cst
  call void @share(ptr %state)
  %after = atomicrmw sub ptr %active_at, i64 1 seq_cst
  br label %look
end:
  ret void
}

define void @stop(ptr %state) {
  %stop_at = getelementptr i64, ptr %state, i64 24
  %semaphore = getelementptr i64, ptr %state, i64 48
  store atomic i64 1, ptr %stop_at seq_cst, align 8
  %posted = call i32 @sem_post(ptr %semaphore)
  ret void
}
