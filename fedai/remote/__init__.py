"The same round elsewhere: a server's replica, Ray, privacy, secure sums, Flower and its sites."
